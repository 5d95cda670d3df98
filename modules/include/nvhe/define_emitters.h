/* SPDX-License-Identifier: Apache-2.0 */
/* Makes HYP_EVENT() define trace_<name>(). No include guard: nvhe/define_events.h comes back to it. */
#undef HYP_EVENT
#undef he_field
#undef HE_PRINTK
#define he_field(type, item)	type item;
#define HE_PRINTK(...)
#define HYP_EVENT(__name, __proto, __struct, __assign, __printk) \
	HYP_EVENT_FORMAT(__name, __struct); \
	extern atomic_t __name##_enabled; \
	extern struct hyp_event_id hyp_event_id_##__name; \
	static __always_inline void trace_##__name(__proto) \
	{ \
		struct trace_hyp_format_##__name *__entry; \
		\
		if (!atomic_read(&__name##_enabled)) \
			return; \
		__entry = tracing_reserve_entry(sizeof(*__entry)); \
		if (!__entry) \
			return; \
		__entry->hdr.id = *(volatile unsigned short *)&hyp_event_id_##__name.id; \
		__assign \
		tracing_commit_entry(); \
	}
