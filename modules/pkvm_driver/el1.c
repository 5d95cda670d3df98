// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The EL1 half of a pKVM vendor module: it loads the EL2 half (hyp/el2.c), makes one function of it callable, and
 * calls it. What the EL2 half exports is declared here under its linked name, __kvm_nvhe_<name>.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_pkvm_driver_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_pkvm_driver_hyp_hvc(struct user_pt_regs *regs);

/* Both are needed as long as the module lives, so neither may stand on the stack of the init function. */
static unsigned long token;	/* EL2 address of the module: turns an EL1 address of the EL2 half into an EL2 one */
static int hvc_number;		/* what the hypervisor calls pkvm_driver_hyp_hvc(): 128 or more */

/* echo 5 > /sys/module/pkvm_driver/parameters/call: one more hypercall, at any time after the load */
static int call_set(const char *val, const struct kernel_param *kp)
{
	unsigned long number;
	int ret = kstrtoul(val, 0, &number);

	if (ret)
		return ret;
	pr_info("hypercall(%lu, 0) answers %lu\n", number, (unsigned long)pkvm_el2_mod_call(hvc_number, number, 0));
	return 0;
}

static const struct kernel_param_ops call_ops = { .set = call_set };
module_param_cb(call, &call_ops, NULL, 0200);
MODULE_PARM_DESC(call, "write a number to call the EL2 half with it");

static int __init pkvm_driver_init(void)
{
	/*
	 * Maps the EL2 half at EL2 and runs its init function there. -EOPNOTSUPP without protected mode and once the
	 * host is deprivileged: a pKVM module is loaded by kvm-arm.protected_modules=, not later.
	 */
	int ret = pkvm_load_el2_module(__kvm_nvhe_pkvm_driver_hyp_init, &token);

	if (ret) {
		pr_err("the EL2 half was not loaded: %d\n", ret);
		return ret;
	}

	/* Also before deprivilege only. The number is valid for good; there is no way to unregister it. */
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_pkvm_driver_hyp_hvc, token);
	if (ret < 0) {
		pr_err("the hypercall was not registered: %d\n", ret);
		return ret;
	}
	hvc_number = ret;

	/* HVC #0 with x0 = 0xC6000000 | hvc_number; the arguments in x1 and x2, the answer in x1. */
	pr_info("hypercall %d is ready, (40, 2) answers %lu\n", hvc_number,
		(unsigned long)pkvm_el2_mod_call(hvc_number, 40, 2));
	return 0;
}
module_init(pkvm_driver_init);

MODULE_DESCRIPTION("A pKVM vendor module after the Android documentation");
MODULE_LICENSE("GPL");
