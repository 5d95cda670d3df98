// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* fixmap-unpaired: the slot stays mapped when the second page cannot be used. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	volatile u64 *first = ops->fixmap_map(pfn << 12);

	if (!*first)
		return 1;
	ops->fixmap_unmap();
	return 0;
}
