/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_UACCESS_H_
#define _PKVM_EMU_ASM_UACCESS_H_

#include <linux/types.h>
#include <linux/errno.h>

/*
 * A store that may fault. Its __ex_table entry says where to go on: from kernel 5.16 on {s32 instruction, s32 fixup,
 * s16 type, s16 data}, self-relative, where type 3 also puts -EFAULT into the register data[4:0] and 0 into
 * data[9:5] (31: none); before that the two offsets alone. (arch/arm64/include/asm/asm-extable.h)
 */
#define EX_TYPE_KACCESS_ERR_ZERO	3

#define _PKVM_EMU_STORE(type) \
	__builtin_choose_expr(sizeof(type) == 1, 1, __builtin_choose_expr(sizeof(type) == 2, 2, sizeof(type)))

#if PKVM_EMU_KERNEL_CODE >= 6001
#define _PKVM_EMU_PUT(insn, value, ptr, label) do { \
	register long err_ __asm__("x9") = 0; \
	__asm__ volatile( \
		"1:	" insn ", [%2]\n" \
		"2:\n" \
		".pushsection __ex_table, \"a\"\n" \
		"	.balign 4\n" \
		"	.long 1b - .\n" \
		"	.long 2b - .\n" \
		"	.short 3\n" \
		"	.short 9 | (31 << 5)\n" \
		".popsection" \
		: "+r"(err_) : "r"(value), "r"(ptr) : "memory"); \
	if (err_) \
		goto label; \
} while (0)
#else
#define _PKVM_EMU_PUT(insn, value, ptr, label) \
	__asm__ goto( \
		"1:	" insn ", [%1]\n" \
		".pushsection __ex_table, \"a\"\n" \
		"	.balign 4\n" \
		"	.long 1b - .\n" \
		"	.long %l2 - .\n" \
		".popsection" \
		: : "r"(value), "r"(ptr) : "memory" : label)
#define _PKVM_EMU_EX_TABLE_SHORT	1
#endif

#ifdef _PKVM_EMU_EX_TABLE_SHORT
#define _PKVM_EMU_VALUE	"0"
#else
#define _PKVM_EMU_VALUE	"1"
#endif

/* *(type *)dst = *(type *)src, or a jump to label when dst cannot be written. */
#define __put_kernel_nofault(dst, src, type, label) do { \
	u64 value_ = *(type *)(src); \
	type *ptr_ = (type *)(dst); \
	switch (sizeof(type)) { \
	case 1: _PKVM_EMU_PUT("strb %w" _PKVM_EMU_VALUE, value_, ptr_, label); break; \
	case 2: _PKVM_EMU_PUT("strh %w" _PKVM_EMU_VALUE, value_, ptr_, label); break; \
	case 4: _PKVM_EMU_PUT("str %w" _PKVM_EMU_VALUE, value_, ptr_, label); break; \
	default: _PKVM_EMU_PUT("str %x" _PKVM_EMU_VALUE, value_, ptr_, label); break; \
	} \
} while (0)

#define __get_kernel_nofault(dst, src, type, label) do { \
	if (copy_from_kernel_nofault(dst, src, sizeof(type))) \
		goto label; \
} while (0)

#endif /* _PKVM_EMU_ASM_UACCESS_H_ */
