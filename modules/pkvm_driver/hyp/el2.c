// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The EL2 half of a pKVM vendor module. It runs in the hypervisor: no symbol of the kernel can be used here, and the
 * functions of the ops table are the only way out. A fault or a failed assertion stops the whole machine.
 */
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>
#include <linux/errno.h>

/* .hyp.bss: after the load these pages belong to the hypervisor and the host can no longer read them. */
static const struct pkvm_module_ops *pkvm_ops;
static u64 calls;

/*
 * The hypercall. regs are the host's x0 to x30: x0 is the SMCCC status and x1 the answer.
 * Here: the sum of both arguments and the number of this call.
 */
void pkvm_driver_hyp_hvc(struct user_pt_regs *regs)
{
	u64 *x = regs->regs;

	calls++;
	pkvm_ops->puts("pkvm_driver: hypercall at EL2");

	x[1] = x[1] + x[2] + calls;
	/* without this x0 would still be the function id, and pkvm_el2_mod_call() would WARN */
	x[0] = SMCCC_RET_SUCCESS;
}

/* Called once, on the CPU that loads the module. Anything but 0 fails the load, or worse: see docs/sample-module.md. */
int pkvm_driver_hyp_init(const struct pkvm_module_ops *ops)
{
	pkvm_ops = ops;
	ops->puts("pkvm_driver: init at EL2");
	return 0;
}
