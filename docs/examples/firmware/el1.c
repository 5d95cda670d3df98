// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// EL1 half: registers one hypercall. The firmware is called by the EL2 half.
#include <linux/init.h>
#include <linux/module.h>
#include <asm/kvm_pkvm_module.h>

MODULE_LICENSE("GPL");

int __kvm_nvhe_firmware_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_read_secure(pkvm_handler_regs_t *regs);

static int __init firmware_probe(void)
{
	unsigned long token;
	int ret = pkvm_load_el2_module(__kvm_nvhe_firmware_init, &token);

	if (ret)
		return ret;
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_read_secure, token);
	return ret < 0 ? ret : 0;
}
module_init(firmware_probe);
