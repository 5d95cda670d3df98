/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_OF_ADDRESS_H_
#define _PKVM_EMU_LINUX_OF_ADDRESS_H_

#include <linux/ioport.h>
#include <linux/of.h>
int of_address_to_resource(struct device_node *node, int index, struct resource *res);
void __iomem *of_iomap(struct device_node *node, int index);

#endif /* _PKVM_EMU_LINUX_OF_ADDRESS_H_ */
