/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The trace events of the module: what they carry and how their lines read. Both halves include this file, several
 * times over, with other meanings of HYP_EVENT(); so its guard lets HYP_EVENT_MULTI_READ pass.
 */
#if !defined(__PKVM_EVENTS_HYPEVENTS_H_) || defined(HYP_EVENT_MULTI_READ)
#define __PKVM_EVENTS_HYPEVENTS_H_

#ifdef __KVM_NVHE_HYPERVISOR__
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <nvhe/trace.h>
#else
#include <trace.h>
#endif
#endif

/* trace_vault_open(slot, key) is what the EL2 half calls for it. */
HYP_EVENT(vault_open,
	HE_PROTO(u32 slot, u64 key),
	HE_STRUCT(
		he_field(u32, slot)
		he_field(u64, key)
	),
	HE_ASSIGN(
		__entry->slot = slot;
		__entry->key = key;
	),
	HE_PRINTK("slot=%u key=0x%llx", __entry->slot, __entry->key)
);

HYP_EVENT(vault_close,
	HE_PROTO(u32 slot, int left),
	HE_STRUCT(
		he_field(u32, slot)
		he_field(int, left)
	),
	HE_ASSIGN(
		__entry->slot = slot;
		__entry->left = left;
	),
	HE_PRINTK("slot=%u left=%d", __entry->slot, __entry->left)
);

#endif
