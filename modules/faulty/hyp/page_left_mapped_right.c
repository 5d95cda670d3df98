// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* page-left-mapped: the mapping of the fixmap is gone before the page goes back. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	volatile u64 *mapped;

#ifdef PKVM_EMU_HYP_ALLOC
	if (ops->host_donate_hyp(pfn, 1, false))
#else
	if (ops->host_donate_hyp(pfn, 1))
#endif
		return 1;
	mapped = ops->fixmap_map(pfn << 12);
	*mapped = 1;
	ops->fixmap_unmap();
	return (u64)(long)ops->hyp_donate_host(pfn, 1);
}
