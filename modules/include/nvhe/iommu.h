/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_IOMMU_H_
#define _PKVM_EMU_NVHE_IOMMU_H_

/* What the hypervisor calls in an IOMMU driver, and what it hands over. */
#include <asm/kvm_pkvm_module.h>
#include <nvhe/spinlock.h>

#ifdef PKVM_EMU_IOMMU_DEVICES
struct pkvm_iommu;

struct pkvm_iommu_ops {
	int (*init)(void *data, size_t size);
	int (*validate)(struct pkvm_iommu *dev);
	int (*validate_child)(struct pkvm_iommu *dev, struct pkvm_iommu *child);
	void (*host_stage2_idmap_prepare)(phys_addr_t start, phys_addr_t end, enum kvm_pgtable_prot prot);
	void (*host_stage2_idmap_apply)(struct pkvm_iommu *dev, phys_addr_t start, phys_addr_t end);
	void (*host_stage2_idmap_complete)(struct pkvm_iommu *dev);
	int (*suspend)(struct pkvm_iommu *dev);
	int (*resume)(struct pkvm_iommu *dev);
	bool (*host_dabt_handler)(struct pkvm_iommu *dev, struct kvm_cpu_context *host_ctxt, u32 esr, size_t off);
	size_t data_size;
};
_Static_assert(sizeof(struct pkvm_iommu_ops) == 80, "pkvm_iommu_ops");

/* A registered device; data is the driver's own. */
struct pkvm_iommu {
	struct pkvm_iommu *parent;
	struct list_head list;
	struct list_head siblings;
	struct list_head children;
	unsigned long id;
	const struct pkvm_iommu_ops *ops;
	phys_addr_t pa;
	void *va;
	size_t size;
	bool powered;
	u8 flags;
	char data[];
};
_Static_assert(sizeof(struct pkvm_iommu) == 104, "pkvm_iommu");
_Static_assert(offsetof(struct pkvm_iommu, data) == 98, "pkvm_iommu.data");
#endif

#ifdef PKVM_EMU_IOMMU_DOMAINS
enum kvm_power_domain_type {
	KVM_POWER_DOMAIN_NONE,
	KVM_POWER_DOMAIN_HOST_HVC,
	KVM_POWER_DOMAIN_ARM_SCMI,
};

struct kvm_power_domain {
	enum kvm_power_domain_type type;
	union {
		u64 device_id;
		struct {
			u32 smc_id;
			u32 domain_id;
			phys_addr_t shmem_base;
			size_t shmem_size;
		} arm_scmi;
	};
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
};
_Static_assert(sizeof(struct kvm_power_domain) == 48, "kvm_power_domain");

/* An IOMMU instance as its EL2 driver knows it. */
struct kvm_hyp_iommu {
#ifdef PKVM_EMU_IOMMU_INIT_ARG
	struct kvm_power_domain power_domain;
	u32 lock;
#else
	u32 lock;
	struct kvm_power_domain power_domain;
#endif
	bool power_is_off;
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
	ANDROID_KABI_RESERVE(3);
	ANDROID_KABI_RESERVE(4);
};

struct kvm_hyp_iommu_domain {
	atomic_t refs;
	pkvm_handle_t domain_id;
	void *priv;
#ifndef PKVM_EMU_IOMMU_INIT_ARG
	void *vm;
#endif
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
};

#ifdef PKVM_EMU_IOMMU_INIT_ARG
_Static_assert(sizeof(struct kvm_hyp_iommu) == 88, "kvm_hyp_iommu");
_Static_assert(offsetof(struct kvm_hyp_iommu, power_is_off) == 52, "kvm_hyp_iommu.power_is_off");
_Static_assert(sizeof(struct kvm_hyp_iommu_domain) == 32, "kvm_hyp_iommu_domain");

#define KVM_IOMMU_PADDR_CACHE_MAX	511

/* What an unmap call has unmapped: the hypervisor drops the references of these pages. */
struct kvm_iommu_paddr_cache {
	unsigned short ptr;
	u64 paddr[KVM_IOMMU_PADDR_CACHE_MAX];
	size_t pgsize[KVM_IOMMU_PADDR_CACHE_MAX];
};
_Static_assert(sizeof(struct kvm_iommu_paddr_cache) == 8184, "kvm_iommu_paddr_cache");

struct kvm_iommu_ops {
	int (*init)(unsigned long arg);
	struct kvm_hyp_iommu *(*get_iommu_by_id)(pkvm_handle_t iommu_id);
	int (*alloc_domain)(struct kvm_hyp_iommu_domain *domain, u32 type);
	void (*free_domain)(struct kvm_hyp_iommu_domain *domain);
	int (*attach_dev)(struct kvm_hyp_iommu *iommu, struct kvm_hyp_iommu_domain *domain, u32 endpoint_id, u32 pasid,
			  u32 pasid_bits);
	int (*detach_dev)(struct kvm_hyp_iommu *iommu, struct kvm_hyp_iommu_domain *domain, u32 endpoint_id, u32 pasid);
	bool (*dabt_handler)(struct kvm_cpu_context *host_ctxt, u64 esr, u64 addr);
	int (*suspend)(struct kvm_hyp_iommu *iommu);
	int (*resume)(struct kvm_hyp_iommu *iommu);
	void (*iotlb_sync)(struct kvm_hyp_iommu_domain *domain, struct iommu_iotlb_gather *gather);
	void (*host_stage2_idmap)(struct kvm_hyp_iommu_domain *domain, phys_addr_t start, phys_addr_t end, int prot);
	int (*map_pages)(struct kvm_hyp_iommu_domain *domain, unsigned long iova, phys_addr_t paddr, size_t pgsize,
			 size_t pgcount, int prot, size_t *total_mapped);
	size_t (*unmap_pages)(struct kvm_hyp_iommu_domain *domain, unsigned long iova, size_t pgsize, size_t pgcount,
			      struct iommu_iotlb_gather *gather, struct kvm_iommu_paddr_cache *cache);
	phys_addr_t (*iova_to_phys)(struct kvm_hyp_iommu_domain *domain, unsigned long iova);
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
	ANDROID_KABI_RESERVE(3);
	ANDROID_KABI_RESERVE(4);
	ANDROID_KABI_RESERVE(5);
	ANDROID_KABI_RESERVE(6);
	ANDROID_KABI_RESERVE(7);
	ANDROID_KABI_RESERVE(8);
};
_Static_assert(sizeof(struct kvm_iommu_ops) == 176, "kvm_iommu_ops");
#else
_Static_assert(sizeof(struct kvm_hyp_iommu) == 96, "kvm_hyp_iommu");
_Static_assert(offsetof(struct kvm_hyp_iommu, power_is_off) == 56, "kvm_hyp_iommu.power_is_off");
_Static_assert(sizeof(struct kvm_hyp_iommu_domain) == 40, "kvm_hyp_iommu_domain");

#define IOMMU_PAGE_NOCACHE	(1 << 0)

struct kvm_iommu_ops {
	int (*init)(void);
	int (*alloc_domain)(struct kvm_hyp_iommu_domain *domain, int type);
	void (*free_domain)(struct kvm_hyp_iommu_domain *domain);
	struct kvm_hyp_iommu *(*get_iommu_by_id)(pkvm_handle_t iommu_id);
	int (*attach_dev)(struct kvm_hyp_iommu *iommu, struct kvm_hyp_iommu_domain *domain, u32 endpoint_id, u32 pasid,
			  u32 pasid_bits, unsigned long flags);
	int (*detach_dev)(struct kvm_hyp_iommu *iommu, struct kvm_hyp_iommu_domain *domain, u32 endpoint_id, u32 pasid);
	int (*map_pages)(struct kvm_hyp_iommu_domain *domain, unsigned long iova, phys_addr_t paddr, size_t pgsize,
			 size_t pgcount, int prot, size_t *total_mapped);
	size_t (*unmap_pages)(struct kvm_hyp_iommu_domain *domain, unsigned long iova, size_t pgsize, size_t pgcount,
			      struct iommu_iotlb_gather *gather);
	phys_addr_t (*iova_to_phys)(struct kvm_hyp_iommu_domain *domain, unsigned long iova);
	void (*iotlb_sync)(struct kvm_hyp_iommu_domain *domain, struct iommu_iotlb_gather *gather);
	bool (*dabt_handler)(struct user_pt_regs *regs, u64 esr, u64 addr);
	void (*host_stage2_idmap)(struct kvm_hyp_iommu_domain *domain, phys_addr_t start, phys_addr_t end, int prot);
	void (*host_stage2_idmap_complete)(bool map);
	int (*suspend)(struct kvm_hyp_iommu *iommu);
	int (*resume)(struct kvm_hyp_iommu *iommu);
	int (*dev_block_dma)(struct kvm_hyp_iommu *iommu, u32 endpoint_id, bool is_host_to_guest);
	int (*get_iommu_token_by_id)(pkvm_handle_t iommu_id, u64 *out_token);
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
	ANDROID_KABI_RESERVE(3);
	ANDROID_KABI_RESERVE(4);
	ANDROID_KABI_RESERVE(5);
	ANDROID_KABI_RESERVE(6);
	ANDROID_KABI_RESERVE(7);
	ANDROID_KABI_RESERVE(8);
};
_Static_assert(sizeof(struct kvm_iommu_ops) == 200, "kvm_iommu_ops");
#endif
#endif

#endif /* _PKVM_EMU_NVHE_IOMMU_H_ */
