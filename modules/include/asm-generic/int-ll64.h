/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_GENERIC_INT_LL64_H_
#define _PKVM_EMU_ASM_GENERIC_INT_LL64_H_

#include <asm/types.h>

#endif /* _PKVM_EMU_ASM_GENERIC_INT_LL64_H_ */
