// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The EL1 half: asks another driver of the vendor where its shared page is, and gives that page to the EL2 half. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_window_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_window_take(struct user_pt_regs *regs);

/* Exported by a driver of the vendor that is not a pKVM module. */
int vendor_window_pfn(unsigned int index, u64 *pfn);

static unsigned long token;

static int __init window_init(void)
{
	u64 pfn = 0;
	int ret = pkvm_load_el2_module(__kvm_nvhe_window_hyp_init, &token);
	int hvc;

	if (ret)
		return ret;
	hvc = pkvm_register_el2_mod_call(__kvm_nvhe_window_take, token);
	if (hvc < 0)
		return hvc;
	ret = vendor_window_pfn(3, &pfn);
	if (ret)
		return ret;
	pr_info("taking page %#llx: %ld\n", pfn, (long)pkvm_el2_mod_call(hvc, pfn));
	return 0;
}
module_init(window_init);

MODULE_DESCRIPTION("An example of a module that needs a function of another vendor driver");
MODULE_LICENSE("GPL");
