/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
#ifndef FAULTY_H
#define FAULTY_H
#include <asm/kvm_pkvm_module.h>
#include <linux/errno.h>

static const struct pkvm_module_ops *ops;

/* x1: the page frame number that it is called with; what it returns becomes x1. */
static u64 body(u64 pfn);
/* What it does when it is loaded. */
static int at_init(void);

int faulty_init(const struct pkvm_module_ops *table)
{
	ops = table;
	return at_init();
}

void faulty_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	x[1] = body(x[1]);
}

/* The page as EL2 sees it once it is shared or donated. */
static inline volatile u64 *page(u64 pfn)
{
	return ops->hyp_va(pfn << 12);
}

static inline void pin(u64 pfn)
{
	ops->pin_shared_mem((void *)page(pfn), (void *)page(pfn) + 4096);
}

static inline void unpin(u64 pfn)
{
	ops->unpin_shared_mem((void *)page(pfn), (void *)page(pfn) + 4096);
}
#endif
