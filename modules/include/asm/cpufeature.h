/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_CPUFEATURE_H_
#define _PKVM_EMU_ASM_CPUFEATURE_H_

#include <asm/alternative.h>
#include <linux/types.h>

/* Capability numbers are per kernel line; only the one that pKVM modules test is named. */
#if PKVM_EMU_KERNEL_CODE == 6001
#define ARM64_KVM_PROTECTED_MODE	40
#elif PKVM_EMU_KERNEL_CODE == 6006
#define ARM64_KVM_PROTECTED_MODE	51
#elif PKVM_EMU_KERNEL_CODE == 6012
#define ARM64_KVM_PROTECTED_MODE	55
#endif

#define cpus_have_final_cap(capability) ({ \
	__label__ yes_, out_; \
	bool has_; \
	alternative_branch(capability, yes_); \
	has_ = false; \
	goto out_; \
yes_:	has_ = true; \
out_:	has_; })

#endif /* _PKVM_EMU_ASM_CPUFEATURE_H_ */
