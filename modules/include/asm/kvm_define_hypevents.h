/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Defines what the events in HYP_EVENT_FILE need at EL1: for each a printer, the fields, the print format and a
 * struct hyp_event in a section of its own, "_hyp_events.<name>", which the module link sorts into _hyp_events.
 * The file is read once for each of these.
 *	#define HYP_EVENT_FILE ../../../../relative/path/to/hyp/events.h
 *	#include <asm/kvm_define_hypevents.h>
 */
#include <linux/kernel.h>
#include <linux/stringify.h>
#include <linux/trace_events.h>
#include <asm/kvm_hypevents_defs.h>
#include <asm/kvm_hyptrace.h>

#ifndef HYP_EVENT_FILE
#error "define HYP_EVENT_FILE (a path without quotes) before including <asm/kvm_define_hypevents.h>"
#endif
#ifndef CONFIG_TRACING
#error "this Android generation gives vendor modules no events; it needs android15 or later"
#endif

#undef HYP_EVENT
#undef HE_PRINTK
#undef he_field
#define HYP_EVENT_MULTI_READ

/* 1: the layout in the buffer and the function that turns an entry into text */
#define he_field(type, item)	type item;
#define HE_PRINTK(...)		__VA_ARGS__
#define HYP_EVENT(__name, __proto, __struct, __assign, __printk) \
	HYP_EVENT_FORMAT(__name, __struct); \
	static void hyp_event_trace_##__name(struct ht_iterator *iter_) \
	{ \
		struct trace_hyp_format_##__name __maybe_unused *__entry = \
			(struct trace_hyp_format_##__name *)iter_->ent; \
		\
		trace_seq_puts(&iter_->seq, #__name); \
		trace_seq_putc(&iter_->seq, ' '); \
		trace_seq_printf(&iter_->seq, __printk); \
		trace_seq_putc(&iter_->seq, '\n'); \
	}
#include __stringify(HYP_EVENT_FILE)

/* 2: the fields */
#undef HYP_EVENT
#undef he_field
#define he_field(type_, item) { \
	.type = #type_, .name = #item, .size = sizeof(type_), .align = __alignof__(type_), \
	.is_signed = is_signed_type(type_) },
#define HYP_EVENT(__name, __proto, __struct, __assign, __printk) \
	static struct trace_event_fields hyp_event_fields_##__name[] = { __struct { } };
#include __stringify(HYP_EVENT_FILE)

/* 3: the print format, with REC standing for the entry; and the event itself */
#undef HYP_EVENT
#undef HE_PRINTK
#define __entry			REC
#define HE_PRINTK(...)		__stringify(__VA_ARGS__)
#define HYP_EVENT(__name, __proto, __struct, __assign, __printk) \
	static char hyp_event_print_fmt_##__name[] = __printk; \
	static bool hyp_event_enabled_##__name; \
	static struct hyp_event __used __section("_hyp_events." #__name) hyp_event_##__name = { \
		.name = #__name, \
		.enabled = &hyp_event_enabled_##__name, \
		.print_fmt = hyp_event_print_fmt_##__name, \
		.fields = hyp_event_fields_##__name, \
		.trace_func = hyp_event_trace_##__name, \
	};
#include __stringify(HYP_EVENT_FILE)

#undef HYP_EVENT
#undef HYP_EVENT_MULTI_READ
#undef HE_PRINTK
#undef he_field
#undef __entry
