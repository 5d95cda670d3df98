// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* mod-prot-without-handler: somebody answers the fault. */
#include "faulty.h"

static int fault(pkvm_handler_regs_t *regs, u64 esr, u64 addr)
{
	return -EPERM;
}

static int at_init(void)
{
	return ops->register_host_perm_fault_handler(fault);
}

static u64 body(u64 pfn)
{
#ifdef PKVM_EMU_HYP_ALLOC
	return (u64)(long)ops->host_stage2_mod_prot(pfn, KVM_PGTABLE_PROT_R, 1, false);
#else
	return (u64)(long)ops->host_stage2_mod_prot(pfn, KVM_PGTABLE_PROT_R);
#endif
}
