// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* slots-exhausted: there is one slot, and nothing is ever unregistered. */
#include "faulty.h"

static void notify(pkvm_handler_regs_t *regs)
{
}

static int at_init(void)
{
	return ops->register_hyp_panic_notifier(notify);
}

static u64 body(u64 pfn)
{
	return (u64)(long)ops->register_hyp_panic_notifier(notify);
}
