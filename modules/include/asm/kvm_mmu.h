/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_MMU_H_
#define _PKVM_EMU_ASM_KVM_MMU_H_

#include <asm/kvm_pgtable.h>
#include <asm/memory.h>
#ifndef __KVM_NVHE_HYPERVISOR__
/* Share kernel memory with EL2 and take it back; nested shares are counted. 0 or a negative errno. */
int kvm_share_hyp(void *from, void *to);
void kvm_unshare_hyp(void *from, void *to);
#endif

#endif /* _PKVM_EMU_ASM_KVM_MMU_H_ */
