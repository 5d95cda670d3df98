/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_DEBUG_MONITORS_H_
#define _PKVM_EMU_ASM_DEBUG_MONITORS_H_

#include <asm/brk-imm.h>

#endif /* _PKVM_EMU_ASM_DEBUG_MONITORS_H_ */
