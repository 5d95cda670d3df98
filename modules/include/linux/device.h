/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_DEVICE_H_
#define _PKVM_EMU_LINUX_DEVICE_H_

#include <linux/dev_printk.h>
#include <linux/device/driver.h>
#include <linux/gfp.h>
#include <linux/ioport.h>
#include <linux/slab.h>
#include <linux/types.h>

struct device_node;

/* A module reaches its members through functions only, apart from these. */
struct device {
	struct device *parent;
	const char *init_name;
	void *driver_data;
	void *platform_data;
	struct device_node *of_node;
	u64 reserved[64];
};

void *devm_kmalloc(struct device *dev, size_t size, gfp_t gfp);
static inline void *devm_kzalloc(struct device *dev, size_t size, gfp_t gfp)
{
	return devm_kmalloc(dev, size, gfp | __GFP_ZERO);
}
static inline void *devm_kcalloc(struct device *dev, size_t n, size_t size, gfp_t gfp)
{
	return devm_kzalloc(dev, size_mul(n, size), gfp);
}
void __iomem *devm_ioremap_resource(struct device *dev, const struct resource *res);
const char *dev_name(const struct device *dev);
static inline void *dev_get_drvdata(const struct device *dev) { return dev->driver_data; }
static inline void dev_set_drvdata(struct device *dev, void *data) { dev->driver_data = data; }
__printf(3, 4) int dev_err_probe(const struct device *dev, int err, const char *fmt, ...);

#endif /* _PKVM_EMU_LINUX_DEVICE_H_ */
