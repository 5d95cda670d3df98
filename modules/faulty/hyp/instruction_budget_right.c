// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* instruction-budget: a hundred thousand turns stay below a million instructions. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
	u64 sum = 0;

	for (u64 i = 0; i < 100000; i++) {
		sum += i;
		asm volatile("" : "+r"(sum));
	}
	return sum;
}
