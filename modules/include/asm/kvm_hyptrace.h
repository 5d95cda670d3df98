/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_HYPTRACE_H_
#define _PKVM_EMU_ASM_KVM_HYPTRACE_H_

#include <linux/trace_seq.h>
#include <linux/types.h>

struct hyp_entry_hdr;
struct hyp_trace_buffer;

/* One reader of the hypervisor trace; a module's printers use ent and seq. */
struct ht_iterator {
	struct hyp_trace_buffer *hyp_buffer;
	int cpu;
	struct hyp_entry_hdr *ent;
	unsigned long lost_events;
	int ent_cpu;
	size_t ent_size;
	u64 ts;
	void *spare;
	size_t copy_leftover;
	struct trace_seq seq;
};
_Static_assert(offsetof(struct ht_iterator, ent) == 16, "ht_iterator.ent");
_Static_assert(offsetof(struct ht_iterator, seq) == 72, "ht_iterator.seq");

#endif /* _PKVM_EMU_ASM_KVM_HYPTRACE_H_ */
