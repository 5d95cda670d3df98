/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_ASM_KVM_HYP_H_
#define _PKVM_EMU_ASM_KVM_HYP_H_

#include <asm/kvm_host.h>
#include <asm/sysreg.h>
/* EL1 registers as EL2 reads them with HCR_EL2.E2H clear, and hypervisor registers under their usual names */
#define read_sysreg_el2(name)		read_sysreg(name##_EL2)
#define write_sysreg_el2(val, name)	write_sysreg(val, name##_EL2)

#endif /* _PKVM_EMU_ASM_KVM_HYP_H_ */
