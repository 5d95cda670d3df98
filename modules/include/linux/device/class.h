/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_DEVICE_CLASS_H_
#define _PKVM_EMU_LINUX_DEVICE_CLASS_H_

#include <linux/kobject.h>
#include <linux/types.h>
struct device;
struct lock_class_key;
struct module;

/* Up to 6.3 a class has an owner and a dev_kobj (include/linux/device/class.h). */
struct class {
	const char *name;
#if PKVM_EMU_KERNEL_CODE < 6004
	struct module *owner;
#endif
	const struct attribute_group **class_groups;
	const struct attribute_group **dev_groups;
#if PKVM_EMU_KERNEL_CODE < 6004
	struct kobject *dev_kobj;
#endif
	int (*dev_uevent)(const struct device *dev, void *env);
	char *(*devnode)(const struct device *dev, umode_t *mode);
	void (*class_release)(const struct class *class);
	void (*dev_release)(struct device *dev);
	u64 _rest[12];
};

struct class_attribute {
	struct attribute attr;
	ssize_t (*show)(const struct class *class, const struct class_attribute *attr, char *buf);
	ssize_t (*store)(const struct class *class, const struct class_attribute *attr, const char *buf, size_t count);
};
#define CLASS_ATTR_RO(_name)	struct class_attribute class_attr_##_name = __ATTR_RO(_name)
#define CLASS_ATTR_RW(_name)	struct class_attribute class_attr_##_name = __ATTR_RW(_name)

#if PKVM_EMU_KERNEL_CODE < 6004
struct class *__class_create(struct module *owner, const char *name, struct lock_class_key *key);
int __class_register(struct class *class, struct lock_class_key *key);
#define class_create(owner, name)	__class_create(owner, name, NULL)
#define class_register(class)		__class_register(class, NULL)
#else
struct class *class_create(const char *name);
int class_register(const struct class *class);
#endif
void class_unregister(const struct class *class);
void class_destroy(const struct class *class);
int class_create_file_ns(const struct class *class, const struct class_attribute *attr, const void *ns);
void class_remove_file_ns(const struct class *class, const struct class_attribute *attr, const void *ns);
static inline int class_create_file(const struct class *class, const struct class_attribute *attr)
{
	return class_create_file_ns(class, attr, NULL);
}

#endif /* _PKVM_EMU_LINUX_DEVICE_CLASS_H_ */
