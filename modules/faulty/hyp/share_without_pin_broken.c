// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* share-without-pin: the host can unshare the page from another CPU while it is read. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	u64 value;

	if (ops->host_share_hyp(pfn))
		return 1;
	value = *page(pfn);
	ops->host_unshare_hyp(pfn);
	return value;
}
