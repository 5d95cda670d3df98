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
 * The hypercall. ctx is the host's CPU context, of which x0 to x30 come first: x0 is the SMCCC status and x1 the
 * answer. Here: the sum of both arguments and the number of this call.
 */
void pkvm_driver_hyp_hvc(struct kvm_cpu_context *ctx)
{
	u64 *x = ctx->regs.regs;

	calls++;
	pkvm_ops->puts("pkvm_driver: hypercall at EL2");

	x[1] = x[1] + x[2] + calls;
	/* the hypervisor of android14 sets x0 to success before the call; from android15 on it does not */
	x[0] = SMCCC_RET_SUCCESS;
}

/* Called once, on the CPU that loads the module. Anything but 0 fails the load, or worse: see docs/sample-module.md. */
int pkvm_driver_hyp_init(const struct pkvm_module_ops *ops)
{
	pkvm_ops = ops;
	ops->puts("pkvm_driver: init at EL2");
	return 0;
}
