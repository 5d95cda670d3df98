/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_KVM_ARM_HYPERCALLS_H_
#define _PKVM_EMU_KVM_ARM_HYPERCALLS_H_

#include <linux/arm-smccc.h>

#endif /* _PKVM_EMU_KVM_ARM_HYPERCALLS_H_ */
