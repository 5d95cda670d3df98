/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_PLATFORM_DEVICE_H_
#define _PKVM_EMU_LINUX_PLATFORM_DEVICE_H_

#include <linux/device.h>
#include <linux/ioport.h>
#include <linux/mod_devicetable.h>
#include <linux/module.h>

struct platform_device {
	const char *name;
	int id;
	bool id_auto;
	struct device dev;
	u64 platform_dma_mask;
	u32 num_resources;
	struct resource *resource;
	const struct platform_device_id *id_entry;
};

struct platform_driver {
	int (*probe)(struct platform_device *pdev);
#ifdef PKVM_EMU_PLATFORM_REMOVE_VOID
	void (*remove)(struct platform_device *pdev);
#else
	int (*remove)(struct platform_device *pdev);
#endif
	void (*shutdown)(struct platform_device *pdev);
	int (*suspend)(struct platform_device *pdev, int state);
	int (*resume)(struct platform_device *pdev);
	struct device_driver driver;
	const struct platform_device_id *id_table;
	bool prevent_deferred_probe;
	bool driver_managed_dma;
};

int __platform_driver_register(struct platform_driver *driver, struct module *owner);
void platform_driver_unregister(struct platform_driver *driver);
#define platform_driver_register(driver)	__platform_driver_register(driver, THIS_MODULE)
struct resource *platform_get_resource(struct platform_device *pdev, unsigned int type, unsigned int index);
void __iomem *devm_platform_ioremap_resource(struct platform_device *pdev, unsigned int index);
int platform_get_irq(struct platform_device *pdev, unsigned int index);
int platform_get_irq_optional(struct platform_device *pdev, unsigned int index);
static inline void *platform_get_drvdata(const struct platform_device *pdev) { return pdev->dev.driver_data; }
static inline void platform_set_drvdata(struct platform_device *pdev, void *data) { pdev->dev.driver_data = data; }

#define module_platform_driver(drv) \
	static int __init drv##_init(void) { return platform_driver_register(&(drv)); } \
	module_init(drv##_init); \
	static void __exit drv##_exit(void) { platform_driver_unregister(&(drv)); } \
	module_exit(drv##_exit)
#define builtin_platform_driver(drv) \
	static int __init drv##_init(void) { return platform_driver_register(&(drv)); } \
	module_init(drv##_init)

#endif /* _PKVM_EMU_LINUX_PLATFORM_DEVICE_H_ */
