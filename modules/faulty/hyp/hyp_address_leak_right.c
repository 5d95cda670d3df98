// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* hyp-address-leak: a physical address says nothing about EL2. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	return ops->hyp_pa((void *)ops->hyp_va(pfn << 12));
}
