/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_DEVICE_H_
#define _PKVM_EMU_LINUX_DEVICE_H_

#include <linux/dev_printk.h>
#include <linux/device/class.h>
#include <linux/device/driver.h>
#include <linux/gfp.h>
#include <linux/ioport.h>
#include <linux/kobject.h>
#include <linux/slab.h>
#include <linux/types.h>

struct device_node;

struct device_type {
	const char *name;
	const struct attribute_group **groups;
	int (*uevent)(const struct device *dev, void *env);
	char *(*devnode)(const struct device *dev, umode_t *mode, void *uid, void *gid);
	const struct dev_pm_ops *pm;
	void (*release)(struct device *dev);
};

/*
 * A module reaches its members through functions only, apart from these. Up to driver_data,
 * and from of_node on, they lie as in a
 * kernel; what is between them is shorter.
 */
struct cma;
struct device {
	struct kobject kobj;
	struct device *parent;
	void *p;
	const char *init_name;
	const struct device_type *type;
	const void *bus;
	struct device_driver *driver;
	void *platform_data;
	void *driver_data;
	struct device_node *of_node;
	void *fwnode;
	dev_t devt;
	u32 id;
	u32 devres_lock;
	struct list_head devres_head;
	const struct class *class;
	const struct attribute_group **groups;
	void (*release)(struct device *dev);
	struct cma *cma_area;
	struct iommu_group *iommu_group;
	struct dev_iommu *iommu;
	u64 reserved[37];
};

struct device_attribute {
	struct attribute attr;
	ssize_t (*show)(struct device *dev, struct device_attribute *attr, char *buf);
	ssize_t (*store)(struct device *dev, struct device_attribute *attr, const char *buf, size_t count);
};
#define DEVICE_ATTR(_name, _mode, _show, _store) \
	struct device_attribute dev_attr_##_name = __ATTR(_name, _mode, _show, _store)
#define DEVICE_ATTR_RO(_name)	struct device_attribute dev_attr_##_name = __ATTR_RO(_name)
#define DEVICE_ATTR_WO(_name)	struct device_attribute dev_attr_##_name = __ATTR_WO(_name)
#define DEVICE_ATTR_RW(_name)	struct device_attribute dev_attr_##_name = __ATTR_RW(_name)

static inline struct device *kobj_to_dev(struct kobject *kobj) { return container_of(kobj, struct device, kobj); }
__printf(2, 3) int dev_set_name(struct device *dev, const char *name, ...);
void device_initialize(struct device *dev);
int device_add(struct device *dev);
int device_register(struct device *dev);
void device_del(struct device *dev);
void device_unregister(struct device *dev);
struct device *get_device(struct device *dev);
void put_device(struct device *dev);
__printf(5, 6) struct device *device_create(const struct class *cls, struct device *parent, dev_t devt, void *data,
					    const char *fmt, ...);
__printf(6, 7) struct device *device_create_with_groups(const struct class *cls, struct device *parent,
	dev_t devt, void *data,
							const struct attribute_group **groups, const char *fmt, ...);
void device_destroy(const struct class *cls, dev_t devt);
int device_create_file(struct device *dev, const struct device_attribute *attr);
void device_remove_file(struct device *dev, const struct device_attribute *attr);
int device_add_groups(struct device *dev, const struct attribute_group **groups);
void device_remove_groups(struct device *dev, const struct attribute_group **groups);

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
