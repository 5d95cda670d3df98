// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The EL2 half of a pKVM vendor module with trace events. trace_<event>() costs one load while the event is
 * off; while it is
 * on, the event goes into the trace buffer of the CPU, which the host reads from tracefs.
 */
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>
#include <linux/errno.h>
#include <linux/version.h>

#include "events.h"

/* Defines the ids and the flags of the events, once in the EL2 half. */
#define HYP_EVENT_FILE ../../../../drivers/pkvm_events/hyp/events.h
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <nvhe/define_events.h>
#else
#include <define_events.h>
#endif

static const struct pkvm_module_ops *pkvm_ops;
static u32 slots;

/* What the macros of the trace headers call; nothing of the hypervisor is linked in, so these go through the ops. */
void *tracing_reserve_entry(unsigned long length)
{
	return pkvm_ops->tracing_reserve_entry(length);
}

void tracing_commit_entry(void)
{
	pkvm_ops->tracing_commit_entry();
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
void trace___hyp_printk(u8 fmt_id, u64 a, u64 b, u64 c, u64 d)
{
	pkvm_ops->tracing_mod_hyp_printk(fmt_id, a, b, c, d);
}
#endif

/* The hypercall: x1 is the key; x1 of the answer the slot. */
void pkvm_events_hyp_open(struct user_pt_regs *regs)
{
	u64 key = regs->regs[1];

	trace_vault_open(slots, key);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	/* For what does not deserve an event of its own: up to four numbers, the text stays at EL1. */
	trace_hyp_printk("vault: slot %u opened with 0x%llx", slots, key);
#endif
	trace_vault_close(slots, 7 - (int)slots);

	regs->regs[0] = SMCCC_RET_SUCCESS;
	regs->regs[1] = slots++;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
/* Set by the link of the EL2 half. android16 finds the events by itself. */
extern char __hyp_event_ids_start[], __hyp_event_ids_end[];
#endif

int pkvm_events_hyp_init(const struct pkvm_module_ops *ops)
{
	pkvm_ops = ops;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
	return ops->register_hyp_event_ids((unsigned long)__hyp_event_ids_start, (unsigned long)__hyp_event_ids_end);
#else
	return 0;
#endif
}
