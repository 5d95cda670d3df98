/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_BUG_H_
#define _PKVM_EMU_ASM_BUG_H_

#include <linux/compiler.h>
#include <linux/types.h>
#include <linux/stringify.h>
#include <asm/brk-imm.h>

/*
 * BUG and WARN are "brk #0x800". A 12-byte entry of __bug_table names the place: self-relative offsets of the
 * instruction and of the file name, line, flags. At EL2 every one of them is fatal. (arch/arm64/include/asm/bug.h)
 */
#define BUGFLAG_WARNING		(1 << 0)
#define BUGFLAG_ONCE		(1 << 1)
#define BUGFLAG_NO_CUT_HERE	(1 << 3)
#define BUGFLAG_TAINT(taint)	((taint) << 8)
#define TAINT_WARN		9

#define __BUG_FLAGS(flags) \
	__asm__ volatile( \
		".pushsection .rodata.str, \"aMS\", %%progbits, 1\n" \
		"2:	.asciz \"" __FILE__ "\"\n" \
		".popsection\n" \
		".pushsection __bug_table, \"aw\"\n" \
		"	.balign 4\n" \
		"3:	.long 1f - .\n" \
		"	.long 2b - .\n" \
		"	.short " __stringify(__LINE__) "\n" \
		"	.short %c0\n" \
		".popsection\n" \
		"1:	brk #" __stringify(BUG_BRK_IMM) : : "i"(flags))

#define BUG()			do { __BUG_FLAGS(0); unreachable(); } while (0)
#define BUG_ON(cond)		do { if (unlikely(cond)) BUG(); } while (0)
#define __WARN_FLAGS(flags)	__BUG_FLAGS(BUGFLAG_WARNING | BUGFLAG_TAINT(TAINT_WARN) | (flags))

#define _PKVM_EMU_WARN_ON(cond, flags) ({ \
	bool hit_ = !!(cond); \
	if (unlikely(hit_)) \
		__WARN_FLAGS(flags); \
	unlikely(hit_); })
#define WARN_ON(cond)		_PKVM_EMU_WARN_ON(cond, 0)
#define WARN_ON_ONCE(cond)	_PKVM_EMU_WARN_ON(cond, BUGFLAG_ONCE)

#ifdef __KVM_NVHE_HYPERVISOR__
#define WARN(cond, ...)		WARN_ON(cond)
#define WARN_ONCE(cond, ...)	WARN_ON_ONCE(cond)
#else
__printf(1, 2) void __warn_printk(const char *fmt, ...);
#define WARN(cond, ...) ({ \
	bool hit_ = !!(cond); \
	if (unlikely(hit_)) { __warn_printk(__VA_ARGS__); __WARN_FLAGS(BUGFLAG_NO_CUT_HERE); } \
	unlikely(hit_); })
#define WARN_ONCE(cond, ...) ({ \
	static bool warned_; bool hit_ = !!(cond); \
	if (unlikely(hit_ && !warned_)) { \
		warned_ = true; __warn_printk(__VA_ARGS__); __WARN_FLAGS(BUGFLAG_NO_CUT_HERE); \
	} \
	unlikely(hit_); })
#endif
#define CHECK_DATA_CORRUPTION(cond, fmt, ...)	WARN(cond, fmt, ##__VA_ARGS__)

#endif /* _PKVM_EMU_ASM_BUG_H_ */
