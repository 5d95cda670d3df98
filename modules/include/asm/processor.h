/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_PROCESSOR_H_
#define _PKVM_EMU_ASM_PROCESSOR_H_

#include <asm/barrier.h>

#endif /* _PKVM_EMU_ASM_PROCESSOR_H_ */
