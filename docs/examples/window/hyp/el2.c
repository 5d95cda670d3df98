// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The EL2 half: takes the page with the frame number in x1 from the host; x1 is 0 or an errno then. */
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>

static const struct pkvm_module_ops *pkvm_ops;

void window_take(struct user_pt_regs *regs)
{
	regs->regs[1] = pkvm_ops->host_donate_hyp(regs->regs[1], 1, false);
	regs->regs[0] = SMCCC_RET_SUCCESS;
}

int window_hyp_init(const struct pkvm_module_ops *ops)
{
	pkvm_ops = ops;
	return 0;
}
