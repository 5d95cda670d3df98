// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_gate_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_gate_denied(struct user_pt_regs *regs);

static unsigned long token;

static int __init gate_load(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_gate_init, &token);

	if (ret)
		return ret;
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_gate_denied, token);
	return ret < 0 ? ret : 0;
}
module_init(gate_load);

MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("Keeps SMCs of one range from the firmware");
