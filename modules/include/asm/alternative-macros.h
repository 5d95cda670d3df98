/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_ALTERNATIVE_MACROS_H_
#define _PKVM_EMU_ASM_ALTERNATIVE_MACROS_H_

/*
 * An alternative is a 12-byte entry of .altinstructions: where, what instead (both self-relative), under which
 * capability, and the two lengths. The replacement stands at the end of the same section. EL1 alone has alternatives:
 * the kernel replaces instructions of a module before its EL2 half is handed over.
 */
#include <linux/compiler.h>
#include <linux/stringify.h>
#include <linux/types.h>

/*
 * For asm(): the instructions of old, and in their place those of new, which are as many, if the CPU or the system has
 * the capability.
 */
#define ALTERNATIVE(old, new, capability) \
	"901:	" old "\n" \
	"902:\n" \
	".pushsection .altinstructions, \"a\"\n" \
	"	.long 901b - .\n" \
	"	.long 903f - .\n" \
	"	.short " __stringify(capability) "\n" \
	"	.byte 902b - 901b\n" \
	"	.byte 904f - 903f\n" \
	".popsection\n" \
	".subsection 1\n" \
	"903:	" new "\n" \
	"904:\n" \
	".previous\n"

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

static __always_inline bool alternative_has_cap_unlikely(const unsigned long capability)
{
	alternative_branch(capability, present);
	return false;
present:
	return true;
}
#define alternative_has_cap_likely(capability) alternative_has_cap_unlikely(capability)

#endif /* _PKVM_EMU_ASM_ALTERNATIVE_MACROS_H_ */
