// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* heap-use-after-free: a new block at the same place is another block. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	u64 *block = ops->hyp_alloc(24);

	if (!block)
		return 1;
	*(volatile u64 *)block = pfn;
	ops->hyp_free(block);
	block = ops->hyp_alloc(24);
	if (!block)
		return 2;
	pfn = *(volatile u64 *)block;
	ops->hyp_free(block);
	return pfn;
}
