// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The EL1 half that all of them share: it loads the EL2 half and makes faulty_call() callable. */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/kvm_pkvm.h>
#include <asm/kvm_pkvm_module.h>

int __kvm_nvhe_faulty_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_faulty_call(pkvm_handler_regs_t *regs);

static unsigned long token;

static int __init faulty_load(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_faulty_init, &token);

	if (ret)
		return ret;
#ifdef PKVM_EMU_HYP_ALLOC
	/* hyp_alloc() has only what the host gives it. */
	ret = __pkvm_topup_hyp_alloc(4);
	if (ret)
		return ret;
#endif
	ret = pkvm_register_el2_mod_call(__kvm_nvhe_faulty_call, token);
	return ret < 0 ? ret : 0;
}
module_init(faulty_load);

MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("Breaks one contract, or comes close");
