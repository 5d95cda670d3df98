/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_PKVM_MODULE_H_
#define _PKVM_EMU_ASM_KVM_PKVM_MODULE_H_

/*
 * The interface of pKVM vendor modules.
 *
 * EL2 half: an init function gets struct pkvm_module_ops, the only way to call the hypervisor.
 * EL1 half: loads the EL2 half and registers functions of it as hypercalls.
 */
#include <linux/android_kabi.h>
#include <linux/arm-smccc.h>
#include <linux/export.h>
#include <linux/iommu.h>
#include <linux/list.h>
#include <linux/errno.h>
#include <linux/bug.h>
#include <asm/kvm_host.h>
#include <asm/kvm_pgtable.h>
#include <asm/kvm_pkvm.h>
#include <asm/kvm_pkvm_module_layout.h>
#include <asm/page.h>
#include <asm/ptrace.h>

#ifdef PKVM_EMU_HANDLER_CPU_CONTEXT
typedef struct kvm_cpu_context pkvm_handler_regs_t;
#else
typedef struct user_pt_regs pkvm_handler_regs_t;
#endif

/* A function that the host can call: arguments in x1.., results in x0 (SMCCC) and x1... */
typedef void (*dyn_hcall_t)(pkvm_handler_regs_t *regs);

enum pkvm_psci_notification {
	PKVM_PSCI_CPU_SUSPEND,		/* this CPU is about to be suspended */
	PKVM_PSCI_SYSTEM_SUSPEND,	/* the system is about to be suspended */
	PKVM_PSCI_CPU_ENTRY,		/* this CPU came up or woke up */
};

struct kvm_hyp_iommu;
struct kvm_hyp_iommu_domain;
struct kvm_iommu_paddr_cache;
struct pkvm_module_trng_ops;

/* One run of 2^order pages for host_donate_sglist_hyp(). */
struct pkvm_sglist_page {
	u64 pfn : 40;
	u8 order;
} __packed;
_Static_assert(sizeof(struct pkvm_sglist_page) == 6, "pkvm_sglist_page");

#if PKVM_EMU_ANDROID == 14
#include <asm/pkvm_module_ops_android14.h>
#elif PKVM_EMU_ANDROID == 15
#include <asm/pkvm_module_ops_android15.h>
#else
#include <asm/pkvm_module_ops_android16.h>
#endif

#ifndef __KVM_NVHE_HYPERVISOR__
#include <linux/module.h>

int __pkvm_load_el2_module(struct module *module, unsigned long *token);
int __pkvm_register_el2_call(unsigned long hyp_va);

/*
 * pkvm_load_el2_module(init, &token): maps the EL2 half of this module at EL2 and runs its init function.
 * Returns 0, or init's errno, or -EOPNOTSUPP without protected mode or after the host is deprivileged.
 * *token becomes the EL2 address of the lowest section.
 */
#define pkvm_load_el2_module(init_fn, token) ({ \
	THIS_MODULE->arch.hyp.init = (init_fn); \
	__pkvm_load_el2_module(THIS_MODULE, (token)); })

/* The EL2 address of something in the EL2 half, given by its address in the module image. */
#ifdef PKVM_EMU_HYP_EVENTS
#define _pkvm_emu_hyp_base	(THIS_MODULE->arch.hyp.sections.start)
#else
#define _pkvm_emu_hyp_base	(THIS_MODULE->arch.hyp.text.start)
#endif
#define pkvm_el2_mod_va(kern_va, token) \
	((unsigned long)(token) + ((unsigned long)(kern_va) - (unsigned long)_pkvm_emu_hyp_base))

/* Makes an EL2 function callable. Returns its number (128 and up) or a negative errno; before deprivilege only. */
#define pkvm_register_el2_mod_call(hyp_fn, token) ({ \
	dyn_hcall_t fn_ = (hyp_fn); \
	__pkvm_register_el2_call(pkvm_el2_mod_va(fn_, token)); })

/* Calls it with up to seven arguments and returns x1, also after a refusal (x0 != 0), which WARNs. */
#define pkvm_el2_mod_call(id, ...) ({ \
	struct arm_smccc_res res_; \
	arm_smccc_1_1_hvc(KVM_HOST_SMCCC_ID(id), ##__VA_ARGS__, &res_); \
	WARN_ON(res_.a0 != SMCCC_RET_SUCCESS); \
	res_.a1; })

#ifdef PKVM_EMU_MOD_CALL_SMCCC
/* The same, giving all of x0 to x3 and no WARN. */
#define pkvm_el2_mod_call_smccc(id, ...) ({ \
	struct arm_smccc_res res_; \
	arm_smccc_1_1_hvc(KVM_HOST_SMCCC_ID(id), ##__VA_ARGS__, &res_); \
	res_; })
#endif
#endif /* !__KVM_NVHE_HYPERVISOR__ */

#endif /* _PKVM_EMU_ASM_KVM_PKVM_MODULE_H_ */
