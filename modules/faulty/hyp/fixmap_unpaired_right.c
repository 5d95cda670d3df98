// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* fixmap-unpaired: two pages, one after the other, and every way out unmaps. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	volatile u64 *mapped = ops->fixmap_map(pfn << 12);
	u64 first = *mapped;

	ops->fixmap_unmap();
	if (!first)
		return 1;
	mapped = ops->fixmap_map((pfn + 1) << 12);
	first += *mapped;
	ops->fixmap_unmap();
	return first;
}
