// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* hyp-address-leak: the host learns where EL2 has its linear map. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	return (u64)ops->hyp_va(pfn << 12);
}
