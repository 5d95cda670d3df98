/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_IOPORT_H_
#define _PKVM_EMU_LINUX_IOPORT_H_

#include <linux/types.h>
struct resource {
	resource_size_t start;
	resource_size_t end;
	const char *name;
	unsigned long flags;
	unsigned long desc;
	struct resource *parent, *sibling, *child;
};
#define IORESOURCE_MEM	0x00000200
#define IORESOURCE_IRQ	0x00000400
extern struct resource iomem_resource;
static inline resource_size_t resource_size(const struct resource *r) { return r->end - r->start + 1; }

#endif /* _PKVM_EMU_LINUX_IOPORT_H_ */
