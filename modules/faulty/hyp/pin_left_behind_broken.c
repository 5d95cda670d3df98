// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* pin-left-behind: the early way out forgets the pin, so the page can never be unshared. */
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
	if (!*page(pfn))
		return 2;
	unpin(pfn);
	ops->host_unshare_hyp(pfn);
	return 0;
}
