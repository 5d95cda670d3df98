/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_ALTERNATIVE_H_
#define _PKVM_EMU_ASM_ALTERNATIVE_H_

#include <asm/alternative-macros.h>

#endif /* _PKVM_EMU_ASM_ALTERNATIVE_H_ */
