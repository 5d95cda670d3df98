// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The EL1 half of a pKVM vendor module with trace events (android15 and later). It brings what tracefs needs: for each
 * event of hyp/events.h its fields, its format, and the function that prints its line.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

/* Relative to arch/arm64/include/asm, as the documentation has it. Without quotes. */
#define HYP_EVENT_FILE ../../../../drivers/pkvm_events/hyp/events.h
#include <asm/kvm_define_hypevents.h>

int __kvm_nvhe_pkvm_events_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_pkvm_events_hyp_open(struct user_pt_regs *regs);

static unsigned long token;
static int open_number;

/* echo 5 > /sys/module/pkvm_events/parameters/open: open and close the vault with the number as its key */
static int open_set(const char *val, const struct kernel_param *kp)
{
	unsigned long key;
	int ret = kstrtoul(val, 0, &key);

	if (ret)
		return ret;
	/* given with the module, the parameter is set before the EL2 half is up */
	if (!open_number)
		return -ENODEV;
	pr_info("slot %lu\n", (unsigned long)pkvm_el2_mod_call(open_number, key));
	return 0;
}

static const struct kernel_param_ops open_ops = { .set = open_set };
module_param_cb(open, &open_ops, NULL, 0200);
MODULE_PARM_DESC(open, "write a key to open the vault of the EL2 half with it");

static int __init pkvm_events_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_pkvm_events_hyp_init, &token);

	if (ret) {
		pr_err("the EL2 half was not loaded: %d\n", ret);
		return ret;
	}
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_pkvm_events_hyp_open, token);
	if (ret < 0) {
		pr_err("the hypercall was not registered: %d\n", ret);
		return ret;
	}
	open_number = ret;
	return 0;
}
module_init(pkvm_events_init);

MODULE_DESCRIPTION("A pKVM vendor module with trace events");
MODULE_LICENSE("GPL");
