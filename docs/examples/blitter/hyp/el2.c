// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The EL2 half: takes the registers from the host, and copies pages for it. */
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>
#include <linux/errno.h>

#define BLT_SOURCE	0x08
#define BLT_TARGET	0x10
#define BLT_CONTROL	0x18
#define BLT_STATUS	0x1c

static const struct pkvm_module_ops *pkvm_ops;
static unsigned long blt;

/* x1: physical address of the registers. */
void blitter_use(struct user_pt_regs *regs)
{
	int ret = pkvm_ops->host_donate_hyp(regs->regs[1] >> 12, 1, true);

	regs->regs[1] = ret ?: pkvm_ops->create_private_mapping(regs->regs[1], 4096, PAGE_HYP_DEVICE, &blt);
	regs->regs[0] = SMCCC_RET_SUCCESS;
}

/* x1: page frame to copy from, x2: to copy to. */
void blitter_copy(struct user_pt_regs *regs)
{
	*(volatile u64 *)(blt + BLT_SOURCE) = regs->regs[1] << 12;
	*(volatile u64 *)(blt + BLT_TARGET) = regs->regs[2] << 12;
	*(volatile u32 *)(blt + BLT_CONTROL) = 1 | 4096 << 8;
	while (!(*(volatile u32 *)(blt + BLT_STATUS) & 1))
		;
	regs->regs[1] = *(volatile u32 *)(blt + BLT_STATUS) & 2 ? -EIO : 0;
	regs->regs[0] = SMCCC_RET_SUCCESS;
}

int blitter_hyp_init(const struct pkvm_module_ops *ops)
{
	pkvm_ops = ops;
	return 0;
}
