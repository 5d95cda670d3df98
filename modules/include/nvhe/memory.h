/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_NVHE_MEMORY_H_
#define _PKVM_EMU_NVHE_MEMORY_H_

#include <linux/types.h>
/* Where hypervisor code keeps the state of a page; for reading dumps. android16 layout. */
struct hyp_page {
	u16 refcount;
	u8 order;
	u8 host_state;
	u32 host_share_guest_count;
};
_Static_assert(sizeof(struct hyp_page) == 8, "hyp_page");

#endif /* _PKVM_EMU_NVHE_MEMORY_H_ */
