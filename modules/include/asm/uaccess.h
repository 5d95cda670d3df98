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

/*
 * Loads and stores with the rights of EL0 (ldtr,
 	sttr). The __ex_table entry is of type 2 (user access) from kernel 5.16 on; before
 * that its fixup code sets the error.
 */
#define EX_TYPE_UACCESS_ERR_ZERO	2

#if PKVM_EMU_KERNEL_CODE >= 6001
#define _PKVM_EMU_USER(insn) \
	"1:	" insn "\n" \
	"2:\n" \
	".pushsection __ex_table, \"a\"\n" \
	"	.balign 4\n" \
	"	.long 1b - .\n" \
	"	.long 2b - .\n" \
	"	.short 2\n" \
	"	.short 9 | (10 << 5)\n" \
	".popsection"
#else
#define _PKVM_EMU_USER(insn) \
	"1:	" insn "\n" \
	"2:\n" \
	".pushsection .text.fixup, \"ax\"\n" \
	"	.balign 4\n" \
	"3:	mov x9, #-14\n" \
	"	mov x10, #0\n" \
	"	b 2b\n" \
	".popsection\n" \
	".pushsection __ex_table, \"a\"\n" \
	"	.balign 4\n" \
	"	.long 1b - .\n" \
	"	.long 3b - .\n" \
	".popsection"
#endif

static inline long _pkvm_emu_get_user(unsigned long *value, const void *ptr, unsigned long size)
{
	register long err __asm__("x9") = 0;
	register unsigned long got __asm__("x10") = 0;

	if ((unsigned long)ptr >> 52)
		return -EFAULT;
	switch (size) {
	case 1: __asm__ volatile(_PKVM_EMU_USER("ldtrb %w1, [%2]") : "+r"(err), "+r"(got) : "r"(ptr) : "memory"); break;
	case 2: __asm__ volatile(_PKVM_EMU_USER("ldtrh %w1, [%2]") : "+r"(err), "+r"(got) : "r"(ptr) : "memory"); break;
	case 4: __asm__ volatile(_PKVM_EMU_USER("ldtr %w1, [%2]") : "+r"(err), "+r"(got) : "r"(ptr) : "memory"); break;
	default: __asm__ volatile(_PKVM_EMU_USER("ldtr %1, [%2]") : "+r"(err), "+r"(got) : "r"(ptr) : "memory"); break;
	}
	*value = got;
	return err;
}

static inline long _pkvm_emu_put_user(unsigned long value, void *ptr, unsigned long size)
{
	register long err __asm__("x9") = 0;
	register unsigned long put __asm__("x10") = value;

	if ((unsigned long)ptr >> 52)
		return -EFAULT;
	switch (size) {
	case 1: __asm__ volatile(_PKVM_EMU_USER("sttrb %w1, [%2]") : "+r"(err), "+r"(put) : "r"(ptr) : "memory"); break;
	case 2: __asm__ volatile(_PKVM_EMU_USER("sttrh %w1, [%2]") : "+r"(err), "+r"(put) : "r"(ptr) : "memory"); break;
	case 4: __asm__ volatile(_PKVM_EMU_USER("sttr %w1, [%2]") : "+r"(err), "+r"(put) : "r"(ptr) : "memory"); break;
	default: __asm__ volatile(_PKVM_EMU_USER("sttr %1, [%2]") : "+r"(err), "+r"(put) : "r"(ptr) : "memory"); break;
	}
	return err;
}

#endif /* _PKVM_EMU_ASM_UACCESS_H_ */
