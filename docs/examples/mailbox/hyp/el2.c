// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The EL2 half: a box with one message, kept where the host cannot look. */
#include <asm/kvm_pkvm_module.h>
#include <linux/errno.h>

static u64 message;
static u64 posts;

int mailbox_hyp_init(const struct pkvm_module_ops *ops)
{
	return 0;
}

/* x1: the message; x1 afterwards: how many there were. */
void mailbox_post(struct user_pt_regs *regs)
{
	message = regs->regs[1];
	regs->regs[0] = 0;
	regs->regs[1] = ++posts;
}

/* x1 afterwards: the message, which is gone then. */
void mailbox_fetch(struct user_pt_regs *regs)
{
	regs->regs[0] = 0;
	regs->regs[1] = message;
	message = 0;
}
