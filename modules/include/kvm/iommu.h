/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_KVM_IOMMU_H_
#define _PKVM_EMU_KVM_IOMMU_H_

#include <asm/kvm_pkvm.h>

#endif /* _PKVM_EMU_KVM_IOMMU_H_ */
