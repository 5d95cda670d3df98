// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_buffer_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_buffer_sum(struct user_pt_regs *regs);

static unsigned long token;

static int __init buffer_load(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_buffer_init, &token);

	if (ret)
		return ret;
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_buffer_sum, token);
	if (ret < 0)
		return ret;
	pr_info("hypercall %d sums a buffer\n", ret);
	return 0;
}
module_init(buffer_load);

MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("Sums numbers in a page of the host, at EL2");
