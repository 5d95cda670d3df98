/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_INSN_H_
#define _PKVM_EMU_ASM_INSN_H_

#include <linux/types.h>
#define AARCH64_INSN_SIZE	4
#define AARCH64_INSN_NOP	0xd503201f

#endif /* _PKVM_EMU_ASM_INSN_H_ */
