/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_TRACE_EVENTS_H_
#define _PKVM_EMU_LINUX_TRACE_EVENTS_H_

#include <linux/trace_seq.h>
#include <linux/types.h>

/* One field of an event, as shown in its "format" file; an array ends with an entry of zeros. */
struct trace_event_fields {
	const char *type;
	union {
		struct {
			const char *name;
			const int size;
			const int align;
			const unsigned int is_signed:1;
			unsigned int needs_test:1;
			const int filter_type;
			const int len;
		};
		int (*define_fields)(void *call);
	};
};
_Static_assert(sizeof(struct trace_event_fields) == 40, "trace_event_fields");

#endif /* _PKVM_EMU_LINUX_TRACE_EVENTS_H_ */
