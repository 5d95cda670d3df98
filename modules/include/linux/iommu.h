/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IOMMU_H_
#define _PKVM_EMU_LINUX_IOMMU_H_

#include <linux/types.h>
#define IOMMU_READ	(1 << 0)
#define IOMMU_WRITE	(1 << 1)
#define IOMMU_CACHE	(1 << 2)
#define IOMMU_NOEXEC	(1 << 3)
#define IOMMU_MMIO	(1 << 4)
#define IOMMU_PRIV	(1 << 5)

struct iommu_pages_list;

/* Unmapped but not yet invalidated range (include/linux/iommu.h). */
struct iommu_iotlb_gather {
	unsigned long start;
	unsigned long end;
	size_t pgsize;
	struct list_head freelist;
	bool queued;
	u64 reserved[2];
};
_Static_assert(sizeof(struct iommu_iotlb_gather) == 64, "iommu_iotlb_gather");

#endif /* _PKVM_EMU_LINUX_IOMMU_H_ */
