/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_HYPEVENTS_DEFS_H_
#define _PKVM_EMU_ASM_KVM_HYPEVENTS_DEFS_H_

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/stddef.h>
#include <linux/types.h>

/* How an event is described, for both levels. The layouts are shared with the kernel. */
#define HE_PROTO(...)	__VA_ARGS__
#define HE_STRUCT(...)	__VA_ARGS__
#define HE_ASSIGN(...)	__VA_ARGS__

struct hyp_entry_hdr {
	unsigned short id;
};

/* What an event looks like in the ring buffer: no padding, so a u64 may stand at offset 2. */
#define HYP_EVENT_FORMAT(__name, __struct) \
	struct __packed trace_hyp_format_##__name { \
		struct hyp_entry_hdr hdr; \
		__struct \
	}

/* At EL2: the number the host gave the event, and its flag. */
struct hyp_event_id {
	unsigned short id;
	void *data;
};
_Static_assert(sizeof(struct hyp_event_id) == 16, "hyp_event_id");
_Static_assert(offsetof(struct hyp_event_id, data) == 8, "hyp_event_id.data");

#define HYP_PRINTK_FMT_MAX	128
struct hyp_printk_fmt {
	char fmt[HYP_PRINTK_FMT_MAX - 1];
	char null;
} __packed;
_Static_assert(sizeof(struct hyp_printk_fmt) == 128, "hyp_printk_fmt");

#define HYP_EVENT_NAME_MAX	32
struct ht_iterator;
struct trace_event_fields;

/* At EL1: what tracefs needs. */
struct hyp_event {
	char name[HYP_EVENT_NAME_MAX];
	bool *enabled;
	char *print_fmt;
	struct trace_event_fields *fields;
	void (*trace_func)(struct ht_iterator *iter);
	int id;
};
_Static_assert(sizeof(struct hyp_event) == 72, "hyp_event");
_Static_assert(offsetof(struct hyp_event, id) == 64, "hyp_event.id");

#endif /* _PKVM_EMU_ASM_KVM_HYPEVENTS_DEFS_H_ */
