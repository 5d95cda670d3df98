/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_IOMMU_H_
#define _PKVM_EMU_NVHE_IOMMU_H_

#include <asm/kvm_pkvm_module.h>
#include <nvhe/spinlock.h>

#ifdef PKVM_EMU_HYP_ALLOC
/* An IOMMU instance as its EL2 driver knows it (android16 sizes). */
struct kvm_power_domain {
	u32 type;
	u64 args[5];
};

struct kvm_hyp_iommu {
	u32 lock;
	struct kvm_power_domain power_domain;
	bool power_is_off;
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
	ANDROID_KABI_RESERVE(3);
	ANDROID_KABI_RESERVE(4);
};
_Static_assert(sizeof(struct kvm_hyp_iommu) == 96, "kvm_hyp_iommu");
_Static_assert(offsetof(struct kvm_hyp_iommu, power_is_off) == 56, "kvm_hyp_iommu.power_is_off");

struct kvm_hyp_iommu_domain {
	atomic_t refs;
	u32 domain_id;
	void *priv;
	void *vm;
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
};
_Static_assert(sizeof(struct kvm_hyp_iommu_domain) == 40, "kvm_hyp_iommu_domain");

struct kvm_iommu_sg {
	phys_addr_t phys;
	size_t pgsize;
	unsigned int pgcount;
};
_Static_assert(sizeof(struct kvm_iommu_sg) == 24, "kvm_iommu_sg");
#endif

#endif /* _PKVM_EMU_NVHE_IOMMU_H_ */
