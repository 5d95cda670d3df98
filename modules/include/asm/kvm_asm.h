/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_ASM_H_
#define _PKVM_EMU_ASM_KVM_ASM_H_

#include <linux/arm-smccc.h>

/* A host hypercall is a fast 64-bit call of the vendor-hypervisor owner: 0xC6000000 | number. */
#define KVM_HOST_SMCCC_ID(number) \
	ARM_SMCCC_CALL_VAL(ARM_SMCCC_FAST_CALL, ARM_SMCCC_SMC_64, ARM_SMCCC_OWNER_VENDOR_HYP, (number))
#define KVM_HOST_SMCCC_FUNC(name)	KVM_HOST_SMCCC_ID(__KVM_HOST_SMCCC_FUNC_##name)

#define __KVM_HOST_SMCCC_FUNC___dynamic_hcalls	128	/* the first number given to a module's function */

/*
 * The numbers up to the sharing calls. Later ones are for the kernel alone and move between point releases.
 * The values of android14 follow the order of the kernel's handler table.
 */
enum __kvm_host_smccc_func {
	__KVM_HOST_SMCCC_FUNC___kvm_hyp_init = 0,
	__KVM_HOST_SMCCC_FUNC___kvm_get_mdcr_el2 = 1,
	__KVM_HOST_SMCCC_FUNC___pkvm_init = 2,
	__KVM_HOST_SMCCC_FUNC___pkvm_create_private_mapping = 3,
	__KVM_HOST_SMCCC_FUNC___pkvm_cpu_set_vector = 4,
	__KVM_HOST_SMCCC_FUNC___kvm_enable_ssbs = 5,
	__KVM_HOST_SMCCC_FUNC___vgic_v3_init_lrs = 6,
	__KVM_HOST_SMCCC_FUNC___vgic_v3_get_gic_config = 7,
	__KVM_HOST_SMCCC_FUNC___kvm_flush_vm_context = 8,
	__KVM_HOST_SMCCC_FUNC___kvm_tlb_flush_vmid_ipa = 9,
#if PKVM_EMU_ANDROID == 14
	__KVM_HOST_SMCCC_FUNC___kvm_tlb_flush_vmid = 10,
	__KVM_HOST_SMCCC_FUNC___kvm_flush_cpu_context = 11,
	__KVM_HOST_SMCCC_FUNC___pkvm_alloc_module_va = 12,
	__KVM_HOST_SMCCC_FUNC___pkvm_map_module_page = 13,
	__KVM_HOST_SMCCC_FUNC___pkvm_unmap_module_page = 14,
	__KVM_HOST_SMCCC_FUNC___pkvm_init_module = 15,
	__KVM_HOST_SMCCC_FUNC___pkvm_register_hcall = 16,
	__KVM_HOST_SMCCC_FUNC___pkvm_prot_finalize = 17,
	__KVM_HOST_SMCCC_FUNC___pkvm_host_share_hyp = 18,
	__KVM_HOST_SMCCC_FUNC___pkvm_host_unshare_hyp = 19,
#else
	__KVM_HOST_SMCCC_FUNC___kvm_tlb_flush_vmid_ipa_nsh = 10,
	__KVM_HOST_SMCCC_FUNC___kvm_tlb_flush_vmid = 11,
	__KVM_HOST_SMCCC_FUNC___kvm_tlb_flush_vmid_range = 12,
	__KVM_HOST_SMCCC_FUNC___kvm_flush_cpu_context = 13,
	__KVM_HOST_SMCCC_FUNC___pkvm_alloc_module_va = 14,
	__KVM_HOST_SMCCC_FUNC___pkvm_map_module_page = 15,
	__KVM_HOST_SMCCC_FUNC___pkvm_unmap_module_page = 16,
	__KVM_HOST_SMCCC_FUNC___pkvm_init_module = 17,
	__KVM_HOST_SMCCC_FUNC___pkvm_register_hcall = 18,
	__KVM_HOST_SMCCC_FUNC___pkvm_iommu_init = 19,
#if PKVM_EMU_ANDROID == 15
	__KVM_HOST_SMCCC_FUNC___pkvm_prot_finalize = 20,
	__KVM_HOST_SMCCC_FUNC___pkvm_host_share_hyp = 21,
	__KVM_HOST_SMCCC_FUNC___pkvm_host_unshare_hyp = 22,
#else
	__KVM_HOST_SMCCC_FUNC___pkvm_devices_init = 20,
	__KVM_HOST_SMCCC_FUNC___pkvm_prot_finalize = 21,
	__KVM_HOST_SMCCC_FUNC___pkvm_host_share_hyp = 22,
	__KVM_HOST_SMCCC_FUNC___pkvm_host_unshare_hyp = 23,
#endif
#endif
};

#define __kvm_nvhe_name(symbol)		__kvm_nvhe_##symbol
#define DECLARE_KVM_NVHE_SYM(symbol)	extern char __kvm_nvhe_##symbol[]
#ifdef __KVM_NVHE_HYPERVISOR__
#define kvm_nvhe_sym(symbol)		symbol
#else
#define kvm_nvhe_sym(symbol)		__kvm_nvhe_##symbol
#endif

#endif /* _PKVM_EMU_ASM_KVM_ASM_H_ */
