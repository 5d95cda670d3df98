/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_TRACE_H_
#define _PKVM_EMU_NVHE_TRACE_H_

/*
 * Events of an EL2 module.
 *
 *	HYP_EVENT(name, HE_PROTO(u64 x), HE_STRUCT(he_field(u64, x)), HE_ASSIGN(__entry->x = x;),
 *		  HE_PRINTK("x=%llu", __entry->x))
 * gives trace_<name>(x). A module with events supplies tracing_reserve_entry() and tracing_commit_entry(), one with
 * trace_hyp_printk() also trace___hyp_printk(): one-line wrappers of the members of the ops table.
 */
#include <linux/atomic.h>
#include <linux/build_bug.h>
#include <linux/compiler.h>
#include <linux/types.h>
#include <asm/kvm_hypevents_defs.h>

#ifdef CONFIG_TRACING

void *tracing_reserve_entry(unsigned long length);
void tracing_commit_entry(void);

#define HE_PRINTK(...)
#include <nvhe/define_emitters.h>

/*
 * On android15 the init function hands on what the hyp link has set, which the module declares itself:
 *	extern char __hyp_event_ids_start[], __hyp_event_ids_end[];
 *	ops->register_hyp_event_ids((unsigned long)__hyp_event_ids_start, (unsigned long)__hyp_event_ids_end)
 */

#ifdef PKVM_EMU_HYP_PRINTK

void trace___hyp_printk(u8 fmt_id, u64 a, u64 b, u64 c, u64 d);

/* Set by the hyp link: where the formats start. Only ever subtracted, so the section is not mapped at EL2. */
extern struct hyp_printk_fmt __hyp_printk_fmts_start[];

/*
 * trace_hyp_printk(fmt, up to four arguments). The format goes to .hyp.printk_fmts; what is traced is its number:
 * its place there plus an offset that the host writes into .hyp.printk_fmt_offset, the count of formats known before.
 */
#define trace_hyp_printk(fmt, ...) \
	_pkvm_emu_hyp_printk_n(_, ##__VA_ARGS__, 4, 3, 2, 1, 0)(fmt, ##__VA_ARGS__)
#define _pkvm_emu_hyp_printk_n(_0, _1, _2, _3, _4, n, ...)	_pkvm_emu_hyp_printk##n
#define _pkvm_emu_hyp_printk0(fmt)		_pkvm_emu_hyp_printk4(fmt, 0, 0, 0, 0)
#define _pkvm_emu_hyp_printk1(fmt, a)		_pkvm_emu_hyp_printk4(fmt, a, 0, 0, 0)
#define _pkvm_emu_hyp_printk2(fmt, a, b)	_pkvm_emu_hyp_printk4(fmt, a, b, 0, 0)
#define _pkvm_emu_hyp_printk3(fmt, a, b, c)	_pkvm_emu_hyp_printk4(fmt, a, b, c, 0)
#define _pkvm_emu_hyp_printk4(fmt_, a, b, c, d) do { \
	static struct hyp_printk_fmt __used __section(".hyp.printk_fmts") format_ = { .fmt = fmt_, .null = '\0' }; \
	static u8 __used __section(".hyp.printk_fmt_offset") fmt_id_offset; \
	_Static_assert(sizeof(fmt_) <= HYP_PRINTK_FMT_MAX, "trace_hyp_printk(): the format is too long"); \
	trace___hyp_printk((u8)(&format_ - __hyp_printk_fmts_start) + *(volatile u8 *)&fmt_id_offset, \
			   (u64)(a), (u64)(b), (u64)(c), (u64)(d)); \
} while (0)

#else
#define trace_hyp_printk(...) \
	_Static_assert(0, "trace_hyp_printk() in a vendor module needs android16 or later")
#endif

#else /* !CONFIG_TRACING */
#define trace_hyp_printk(...) \
	_Static_assert(0, "this Android generation gives vendor modules no tracing; it needs android15 or later")
#endif

#endif /* _PKVM_EMU_NVHE_TRACE_H_ */
