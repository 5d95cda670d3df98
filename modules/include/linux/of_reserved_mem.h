/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OF_RESERVED_MEM_H_
#define _PKVM_EMU_LINUX_OF_RESERVED_MEM_H_

#include <linux/types.h>
struct device_node;
struct reserved_mem {
	const char *name;
	unsigned long fdt_node;
	const void *ops;
	phys_addr_t base;
	phys_addr_t size;
	void *priv;
};
struct reserved_mem *of_reserved_mem_lookup(struct device_node *node);

#endif /* _PKVM_EMU_LINUX_OF_RESERVED_MEM_H_ */
