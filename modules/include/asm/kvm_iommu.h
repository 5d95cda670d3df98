/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_IOMMU_H_
#define _PKVM_EMU_ASM_KVM_IOMMU_H_

/* IOMMU drivers that live at EL2, as their EL1 half sees them. Part of asm/kvm_host.h. */
#include <linux/android_kabi.h>
#include <linux/types.h>
#include <linux/stddef.h>
#include <linux/atomic.h>
#include <asm/kvm_host.h>
#include <pkvm_emu/generation.h>

struct device;
struct device_node;

#ifdef PKVM_EMU_IOMMU_DEVICES
struct pkvm_iommu_ops;

/* Lives in the module's .hyp.data; the hypervisor writes list and state. */
struct pkvm_iommu_driver {
	const struct pkvm_iommu_ops *ops;
	struct list_head list;
	atomic_t state;
};
_Static_assert(sizeof(struct pkvm_iommu_driver) == 32, "pkvm_iommu_driver");
_Static_assert(offsetof(struct pkvm_iommu_driver, state) == 24, "pkvm_iommu_driver.state");

enum pkvm_iommu_pm_event {
	PKVM_IOMMU_PM_SUSPEND,
	PKVM_IOMMU_PM_RESUME,
};

int pkvm_iommu_driver_init(u64 drv, void *data, size_t size);
int pkvm_iommu_register(struct device *dev, u64 drv, phys_addr_t pa, size_t size, struct device *parent, u8 flags);
int pkvm_iommu_finalize(int err);
#endif

#ifdef PKVM_EMU_IOMMU_DOMAINS
struct kvm_iommu_ops;

/* Pages on their way to the hypervisor, linked through their first words; head carries an order in its low bits. */
struct kvm_hyp_memcache {
	phys_addr_t head;
	unsigned long nr_pages;
	unsigned long flags;
#ifndef PKVM_EMU_IOMMU_INIT_ARG
	void *mapping;
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
#endif
};
#ifdef PKVM_EMU_IOMMU_INIT_ARG
_Static_assert(sizeof(struct kvm_hyp_memcache) == 24, "kvm_hyp_memcache");
#else
_Static_assert(sizeof(struct kvm_hyp_memcache) == 48, "kvm_hyp_memcache");
#endif

struct kvm_iommu_driver {
	int (*init_driver)(void);
	void (*remove_driver)(void);
#ifdef PKVM_EMU_IOMMU_INIT_ARG
	pkvm_handle_t (*get_iommu_id)(struct device *dev);
#else
	pkvm_handle_t (*get_iommu_id_by_of)(struct device_node *np);
	int (*get_device_iommu_num_ids)(struct device *dev);
	int (*get_device_iommu_id)(struct device *dev, u32 id, pkvm_handle_t *out_iommu, u32 *out_sid);
	void *(*guest_alloc)(void *flags, unsigned long order);
	void (*guest_free)(void *addr, void *flags, unsigned long order);
#endif
	ANDROID_KABI_RESERVE(1);
	ANDROID_KABI_RESERVE(2);
	ANDROID_KABI_RESERVE(3);
	ANDROID_KABI_RESERVE(4);
	ANDROID_KABI_RESERVE(5);
	ANDROID_KABI_RESERVE(6);
	ANDROID_KABI_RESERVE(7);
	ANDROID_KABI_RESERVE(8);
};

int kvm_iommu_register_driver(struct kvm_iommu_driver *kern_ops);
int topup_hyp_memcache(struct kvm_hyp_memcache *mc, unsigned long min_pages, unsigned long order);
#ifdef PKVM_EMU_IOMMU_INIT_ARG
_Static_assert(sizeof(struct kvm_iommu_driver) == 88, "kvm_iommu_driver");
int kvm_iommu_init_hyp(struct kvm_iommu_ops *hyp_ops, struct kvm_hyp_memcache *atomic_mc, unsigned long init_arg);
#else
_Static_assert(sizeof(struct kvm_iommu_driver) == 120, "kvm_iommu_driver");
struct kvm_iommu_sg {
	phys_addr_t phys;
	size_t pgsize;
	unsigned int pgcount;
};
_Static_assert(sizeof(struct kvm_iommu_sg) == 24, "kvm_iommu_sg");

int kvm_iommu_init_hyp(struct kvm_iommu_ops *hyp_ops, struct kvm_hyp_memcache *atomic_mc);
int kvm_iommu_alloc_domain(pkvm_handle_t domain_id, int type);
int kvm_iommu_free_domain(pkvm_handle_t domain_id);
int kvm_iommu_attach_dev(pkvm_handle_t iommu_id, pkvm_handle_t domain_id, unsigned int endpoint, unsigned int pasid,
			 unsigned int ssid_bits, unsigned long flags);
int kvm_iommu_detach_dev(pkvm_handle_t iommu_id, pkvm_handle_t domain_id, unsigned int endpoint, unsigned int pasid);
int kvm_iommu_map_pages(pkvm_handle_t domain_id, unsigned long iova, phys_addr_t paddr, size_t pgsize, size_t pgcount,
			int prot, gfp_t gfp, size_t *total_mapped);
size_t kvm_iommu_unmap_pages(pkvm_handle_t domain_id, unsigned long iova, size_t pgsize, size_t pgcount);
phys_addr_t kvm_iommu_iova_to_phys(pkvm_handle_t domain_id, unsigned long iova);
size_t kvm_iommu_map_sg(pkvm_handle_t domain_id, struct kvm_iommu_sg *sg, unsigned long iova, unsigned int nent,
			unsigned int prot, gfp_t gfp);
int kvm_iommu_share_hyp_sg(struct kvm_iommu_sg *sg, unsigned int nents);
int kvm_iommu_unshare_hyp_sg(struct kvm_iommu_sg *sg, unsigned int nents);
#endif
#endif

int pkvm_iommu_suspend(struct device *dev);
int pkvm_iommu_resume(struct device *dev);

#endif /* _PKVM_EMU_ASM_KVM_IOMMU_H_ */
