// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* heap-out-of-bounds: up to the last byte. */
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
	for (int i = 0; i < 3; i++)
		*(volatile u64 *)&block[i] = i;
	ops->hyp_free(block);
	return 0;
}
