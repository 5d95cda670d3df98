/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_BRK_IMM_H_
#define _PKVM_EMU_ASM_BRK_IMM_H_

#define KPROBES_BRK_IMM		0x004
#define FAULT_BRK_IMM		0x100
#define KGDB_DYN_DBG_BRK_IMM	0x400
#define BUG_BRK_IMM		0x800
#define KASAN_BRK_IMM		0x900
#define UBSAN_BRK_IMM		0x5500
#define CFI_BRK_IMM_BASE	0x8000

#endif /* _PKVM_EMU_ASM_BRK_IMM_H_ */
