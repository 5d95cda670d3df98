// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* double-fetch: one copy is checked and used; the next number is another one. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	volatile u64 *shared;
	u64 value = 0;

	if (ops->host_share_hyp(pfn))
		return 1;
	pin(pfn);
	shared = page(pfn);
	value = shared[0];
	value = value <= 8 ? value + shared[1] : 0;
	unpin(pfn);
	ops->host_unshare_hyp(pfn);
	return value;
}
