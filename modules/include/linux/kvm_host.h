/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KVM_HOST_H_
#define _PKVM_EMU_LINUX_KVM_HOST_H_

#include <asm/kvm_host.h>
#include <linux/types.h>

#endif /* _PKVM_EMU_LINUX_KVM_HOST_H_ */
