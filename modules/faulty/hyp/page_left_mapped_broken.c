// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* page-left-mapped: a private mapping is never taken away: EL2 can write what is the host's again. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	unsigned long va;

#ifdef PKVM_EMU_HYP_ALLOC
	if (ops->host_donate_hyp(pfn, 1, false))
#else
	if (ops->host_donate_hyp(pfn, 1))
#endif
		return 1;
	if (ops->create_private_mapping(pfn << 12, 4096, KVM_PGTABLE_PROT_R | KVM_PGTABLE_PROT_W, &va))
		return 2;
	*(volatile u64 *)va = 1;
	return (u64)(long)ops->hyp_donate_host(pfn, 1);
}
