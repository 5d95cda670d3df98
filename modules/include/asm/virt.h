/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_VIRT_H_
#define _PKVM_EMU_ASM_VIRT_H_

/* Calls that the bare EL2 stub answers. */
#define HVC_SET_VECTORS		0
#define HVC_SOFT_RESTART	1
#define HVC_RESET_VECTORS	2
#define HVC_FINALISE_EL2	3
#define HVC_STUB_ERR		0xbadca11
#ifndef __ASSEMBLY__
#include <linux/types.h>
#include <asm/cpufeature.h>
static inline bool is_kernel_in_hyp_mode(void) { return false; }
#endif

#endif /* _PKVM_EMU_ASM_VIRT_H_ */
