/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IO_H_
#define _PKVM_EMU_LINUX_IO_H_

#include <linux/types.h>
#include <linux/kernel.h>
#include <asm/io.h>
#include <asm/memory.h>

void *memremap(phys_addr_t phys, size_t size, unsigned long flags);
void memunmap(void *addr);
#define MEMREMAP_WB	1
#define MEMREMAP_WT	2
#define MEMREMAP_WC	4

struct device;
void __iomem *devm_ioremap(struct device *dev, resource_size_t phys, resource_size_t size);

#endif /* _PKVM_EMU_LINUX_IO_H_ */
