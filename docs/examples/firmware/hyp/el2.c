// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// EL2 half: read_secure(register) asks the vendor's firmware for a secure register, by an SMC straight from EL2.
#include <asm/kvm_pkvm_module.h>
#include <linux/arm-smccc.h>

#define SIP_READ_SECURE	0xC2000834

int firmware_init(const struct pkvm_module_ops *ops)
{
	return 0;
}

void read_secure(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	struct arm_smccc_res res;

	arm_smccc_1_1_smc(SIP_READ_SECURE, x[1], &res);
	x[0] = SMCCC_RET_SUCCESS;
	x[1] = res.a0;
	x[2] = res.a1;
}
