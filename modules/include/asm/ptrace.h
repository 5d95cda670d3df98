/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_PTRACE_H_
#define _PKVM_EMU_ASM_PTRACE_H_

#include <linux/types.h>

#define PSR_MODE_EL0t	0x00000000
#define PSR_MODE_EL1t	0x00000004
#define PSR_MODE_EL1h	0x00000005
#define PSR_MODE_EL2t	0x00000008
#define PSR_MODE_EL2h	0x00000009
#define PSR_MODE_MASK	0x0000000f
#define PSR_MODE32_BIT	0x00000010
#define PSR_F_BIT	0x00000040
#define PSR_I_BIT	0x00000080
#define PSR_A_BIT	0x00000100
#define PSR_D_BIT	0x00000200
#define PSR_PAN_BIT	0x00400000

/* The registers of the interrupted level. In EL2 handlers only x0 to x30 are filled in. (uapi/asm/ptrace.h) */
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
_Static_assert(sizeof(struct user_pt_regs) == 272, "user_pt_regs");

struct user_fpsimd_state {
	__uint128_t vregs[32];
	__u32 fpsr;
	__u32 fpcr;
	__u32 reserved[2];
};

#endif /* _PKVM_EMU_ASM_PTRACE_H_ */
