/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_ALTERNATIVE_H_
#define _PKVM_EMU_ASM_ALTERNATIVE_H_

/*
 * An alternative is a 12-byte entry of .altinstructions: where, what instead (both self-relative), under which
 * capability, and the two lengths. The replacement stands at the end of the same section.
 */
#include <linux/compiler.h>
#include <linux/stringify.h>

/* Goes to label if the CPU or the system has the capability; falls through if not. */
#define alternative_branch(capability, label) \
	__asm__ goto( \
		"1:	nop\n" \
		"2:\n" \
		".pushsection .altinstructions, \"a\"\n" \
		"	.long 1b - .\n" \
		"	.long 3f - .\n" \
		"	.short %c0\n" \
		"	.byte 2b - 1b\n" \
		"	.byte 4f - 3f\n" \
		".popsection\n" \
		".subsection 1\n" \
		"3:	b %l1\n" \
		"4:\n" \
		".previous" \
		: : "i"(capability) : : label)

#endif /* _PKVM_EMU_ASM_ALTERNATIVE_H_ */
