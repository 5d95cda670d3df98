// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* pin-left-behind: pinned twice, unpinned twice; the page itself may stay shared. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	if (ops->host_share_hyp(pfn))
		return 1;
	pin(pfn);
	pin(pfn);
	unpin(pfn);
	unpin(pfn);
	return 0;
}
