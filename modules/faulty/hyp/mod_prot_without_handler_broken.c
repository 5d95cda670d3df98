// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* mod-prot-without-handler: every write of the host to the page is an abort for it. */
#include "faulty.h"

static int at_init(void)
{
	return 0;
}

static u64 body(u64 pfn)
{
#ifdef PKVM_EMU_HYP_ALLOC
	return (u64)(long)ops->host_stage2_mod_prot(pfn, KVM_PGTABLE_PROT_R, 1, false);
#else
	return (u64)(long)ops->host_stage2_mod_prot(pfn, KVM_PGTABLE_PROT_R);
#endif
}
