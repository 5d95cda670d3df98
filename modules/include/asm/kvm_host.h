/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_HOST_H_
#define _PKVM_EMU_ASM_KVM_HOST_H_

#include <linux/bug.h>
#include <linux/kernel.h>
#include <asm/cpufeature.h>
#include <asm/kvm_asm.h>
#include <asm/ptrace.h>
#include <asm/sysreg.h>

typedef u32 pkvm_handle_t;

struct kvm_vcpu;

/* What EL2 keeps of one CPU of the host. regs comes first; sizes are those of android16. */
struct kvm_cpu_context {
	struct user_pt_regs regs;
	u64 spsr_abt;
	u64 spsr_und;
	u64 spsr_irq;
	u64 spsr_fiq;
	struct user_fpsimd_state fp_regs;
	u64 sys_regs[282];
	struct kvm_vcpu *__hyp_running_vcpu;
};
_Static_assert(sizeof(struct kvm_cpu_context) == 3104, "kvm_cpu_context");
_Static_assert(offsetof(struct kvm_cpu_context, fp_regs) == 304, "kvm_cpu_context.fp_regs");
_Static_assert(offsetof(struct kvm_cpu_context, sys_regs) == 832, "kvm_cpu_context.sys_regs");

#ifdef __KVM_NVHE_HYPERVISOR__
/* EL2 modules exist in protected mode only. */
static __always_inline bool is_protected_kvm_enabled(void) { return true; }
#elif defined(ARM64_KVM_PROTECTED_MODE)
/* A pair of alternatives, as in released modules: the loader patches it when protected mode is up. */
static __always_inline bool is_protected_kvm_enabled(void) { return cpus_have_final_cap(ARM64_KVM_PROTECTED_MODE); }
#else
bool is_protected_kvm_enabled(void)
	__attribute__((__error__("is_protected_kvm_enabled() needs a 6.1, 6.6 or 6.12 kernel; "
				 "test the result of pkvm_load_el2_module() instead")));
#endif

/* Calls a function of the hypervisor by its number and returns x1; WARNs when the call is refused. */
#define kvm_call_hyp_nvhe(name, ...) ({ \
	struct arm_smccc_res res_; \
	arm_smccc_1_1_hvc(KVM_HOST_SMCCC_FUNC(name), ##__VA_ARGS__, &res_); \
	WARN_ON(res_.a0 != SMCCC_RET_SUCCESS); \
	res_.a1; })

#include <asm/kvm_iommu.h>

#endif /* _PKVM_EMU_ASM_KVM_HOST_H_ */
