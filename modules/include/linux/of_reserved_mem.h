/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OF_RESERVED_MEM_H_
#define _PKVM_EMU_LINUX_OF_RESERVED_MEM_H_

#include <linux/types.h>
struct device;
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
int of_reserved_mem_device_init_by_idx(struct device *dev, struct device_node *node, int index);
int of_reserved_mem_device_init_by_name(struct device *dev, struct device_node *node, const char *name);
void of_reserved_mem_device_release(struct device *dev);

#endif /* _PKVM_EMU_LINUX_OF_RESERVED_MEM_H_ */
