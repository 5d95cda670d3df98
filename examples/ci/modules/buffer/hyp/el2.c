// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
#include <asm/kvm_pkvm_module.h>
#include <linux/errno.h>

/* A page of the host: how many numbers there are, then the numbers. */
#define MOST	511

static const struct pkvm_module_ops *ops;

int buffer_init(const struct pkvm_module_ops *table)
{
	ops = table;
	return 0;
}

static long sum(u64 pfn, u64 *result)
{
	volatile u64 *page = ops->hyp_va(pfn << 12);
	u64 count, total = 0;
	int ret;

	ret = ops->host_share_hyp(pfn);
	if (ret)
		return ret;
	ret = ops->pin_shared_mem((void *)page, (void *)page + 4096);
	if (!ret) {
		/* The host can change it at any time: it is read once. */
		count = page[0];
		if (count > MOST)
			ret = -E2BIG;
		for (u64 i = 1; !ret && i <= count; i++)
			total += page[i];
		ops->unpin_shared_mem((void *)page, (void *)page + 4096);
	}
	ops->host_unshare_hyp(pfn);
	*result = total;
	return ret;
}

/* x1: page frame number. x1: 0 or an errno, x2: the sum. */
void buffer_sum(struct user_pt_regs *regs)
{
	u64 total = 0;
	long ret = sum(regs->regs[1], &total);

	regs->regs[0] = 0;
	regs->regs[1] = ret;
	regs->regs[2] = total;
}
