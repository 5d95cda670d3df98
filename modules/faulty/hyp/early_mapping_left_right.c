// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* early-mapping-left: the mapping is gone before the init function returns. */
#include "faulty.h"

static int at_init(void)
{
	void *mapped = ops->linear_map_early(0x48000000, 4096, KVM_PGTABLE_PROT_R);

	if (!mapped)
		return -ENOMEM;
	ops->linear_unmap_early(mapped, 4096);
	return 0;
}

static u64 body(u64 pfn)
{
	return 0;
}
