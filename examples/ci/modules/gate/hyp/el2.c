// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
#include <asm/kvm_pkvm_module.h>
#include <linux/errno.h>

#define FIRST	0xC2000100
#define LAST	0xC20001FF

static u64 denied;

static bool gate(struct user_pt_regs *regs)
{
	u64 function = regs->regs[0] & 0xFFFFFFFF;

	if (function < FIRST || function > LAST)
		return false;
	denied++;
	regs->regs[0] = -EPERM;
	return true;
}

int gate_init(const struct pkvm_module_ops *ops)
{
	return ops->register_host_smc_handler(gate);
}

/* x1: how many SMCs were denied. */
void gate_denied(struct user_pt_regs *regs)
{
	regs->regs[0] = 0;
	regs->regs[1] = denied;
}
