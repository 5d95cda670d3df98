/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_PKVM_H_
#define _PKVM_EMU_NVHE_PKVM_H_

#include <asm/kvm_pkvm.h>
#include <nvhe/spinlock.h>
#include <nvhe/trap_handler.h>

#endif /* _PKVM_EMU_NVHE_PKVM_H_ */
