/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_MEMBLOCK_H_
#define _PKVM_EMU_LINUX_MEMBLOCK_H_

#include <linux/types.h>
bool memblock_is_memory(phys_addr_t addr);

#endif /* _PKVM_EMU_LINUX_MEMBLOCK_H_ */
