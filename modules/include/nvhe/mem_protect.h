/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_MEM_PROTECT_H_
#define _PKVM_EMU_NVHE_MEM_PROTECT_H_

#include <linux/bits.h>
#include <linux/types.h>
/* States of a page as host_stage2_get_leaf() and the hypervisor's messages show them. */
enum pkvm_page_state {
	PKVM_PAGE_OWNED = 0,
	PKVM_PAGE_SHARED_OWNED = BIT(0),
	PKVM_PAGE_SHARED_BORROWED = BIT(1),
};
enum pkvm_component_id {
	PKVM_ID_HOST = 0,
	PKVM_ID_HYP = 1,
	PKVM_ID_FFA = 2,
	PKVM_ID_GUEST = 3,
	PKVM_ID_PROTECTED = 4,
};

#endif /* _PKVM_EMU_NVHE_MEM_PROTECT_H_ */
