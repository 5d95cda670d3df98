/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_MM_H_
#define _PKVM_EMU_NVHE_MM_H_

#include <asm/kvm_pgtable.h>
#include <asm/page.h>

#endif /* _PKVM_EMU_NVHE_MM_H_ */
