/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OF_PLATFORM_H_
#define _PKVM_EMU_LINUX_OF_PLATFORM_H_

#include <linux/of.h>
struct platform_device;
struct device;
struct platform_device *of_find_device_by_node(struct device_node *node);
int of_platform_populate(struct device_node *root, const struct of_device_id *ids, const void *lookup,
			 struct device *parent);

#endif /* _PKVM_EMU_LINUX_OF_PLATFORM_H_ */
