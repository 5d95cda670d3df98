/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_PKVM_H_
#define _PKVM_EMU_ASM_KVM_PKVM_H_

#include <linux/iommu.h>
#include <asm/kvm_host.h>
#include <asm/kvm_pgtable.h>

/* A request of EL2 to the host, for memory or a mapping. */
enum {
	KVM_HYP_LAST_REQ = 0,
	KVM_HYP_REQ_TYPE_MEM = 1,
	KVM_HYP_REQ_TYPE_MAP = 2,
};

enum {
	REQ_MEM_DEST_HYP_ALLOC = 1,
	REQ_MEM_DEST_VCPU_MEMCACHE = 2,
	REQ_MEM_DEST_HYP_IOMMU = 3,
};

struct kvm_hyp_req {
	u8 type;
	union {
		struct {
			u8 dest;
			int nr_pages;
			int sz_alloc;
		} mem;
		struct {
			unsigned long guest_ipa;
			size_t size;
		} map;
	};
};
_Static_assert(sizeof(struct kvm_hyp_req) == 24, "kvm_hyp_req");

#define HYP_ALLOC_MGT_HEAP_ID	0
#define HYP_ALLOC_MGT_IOMMU_ID	1

#ifdef PKVM_EMU_HYP_ALLOC
#ifndef __KVM_NVHE_HYPERVISOR__
/* Gives the EL2 heap nr_pages more pages; 0 or a negative errno (arch/arm64/kvm/pkvm.c). */
int __pkvm_topup_hyp_alloc(unsigned long nr_pages);
#endif
#endif

#endif /* _PKVM_EMU_ASM_KVM_PKVM_H_ */
