/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Defines what the events in HYP_EVENT_FILE need at EL2: an id for the host to fill in and an "enabled" flag each.
 * Include it once a file of events, from one C file:
 *	#define HYP_EVENT_FILE ../../../../../path/to/hyp/events.h
 *	#include <nvhe/define_events.h>
 */
#include <linux/stringify.h>
#include <nvhe/trace.h>

#ifndef HYP_EVENT_FILE
#error "define HYP_EVENT_FILE (a path without quotes) before including <nvhe/define_events.h>"
#endif

#ifdef CONFIG_TRACING
/* the emitters first, unless they are here already */
#include <nvhe/define_emitters.h>
#include __stringify(HYP_EVENT_FILE)

#undef HYP_EVENT
#define HYP_EVENT(__name, __proto, __struct, __assign, __printk) \
	atomic_t __ro_after_init __name##_enabled = ATOMIC_INIT(0); \
	struct hyp_event_id hyp_event_id_##__name __used __section(".hyp.event_ids." #__name) = { \
		.data = (void *)&__name##_enabled };
#define HYP_EVENT_MULTI_READ
#include __stringify(HYP_EVENT_FILE)
#undef HYP_EVENT_MULTI_READ

#include <nvhe/define_emitters.h>
#else
#error "this Android generation gives vendor modules no events; it needs android15 or later"
#endif
