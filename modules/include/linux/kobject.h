/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_KOBJECT_H_
#define _PKVM_EMU_LINUX_KOBJECT_H_

#include <linux/build_bug.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/sysfs.h>

struct kset;
struct kobj_type;
struct kset_uevent_ops;

/* The layout of GKI kernels (include/linux/kobject.h). */
struct kobject {
	const char *name;
	struct list_head entry;
	struct kobject *parent;
	struct kset *kset;
	const struct kobj_type *ktype;
	void *sd;
	struct kref kref;
	unsigned int state_initialized:1;
	unsigned int state_in_sysfs:1;
	unsigned int state_add_uevent_sent:1;
	unsigned int state_remove_uevent_sent:1;
	unsigned int uevent_suppress:1;
	u64 android_kabi_reserved[4];
};
static_assert(sizeof(struct kobject) == 96);

struct kobj_type {
	void (*release)(struct kobject *kobj);
	const struct sysfs_ops *sysfs_ops;
	const struct attribute_group **default_groups;
	u64 reserved[7];
};

struct kobj_attribute {
	struct attribute attr;
	ssize_t (*show)(struct kobject *kobj, struct kobj_attribute *attr, char *buf);
	ssize_t (*store)(struct kobject *kobj, struct kobj_attribute *attr, const char *buf, size_t count);
};

struct kset {
	struct list_head list;
	spinlock_t list_lock;
	struct kobject kobj;
	const struct kset_uevent_ops *uevent_ops;
	u64 android_kabi_reserved[4];
};

enum kobject_action {
	KOBJ_ADD, KOBJ_REMOVE, KOBJ_CHANGE, KOBJ_MOVE, KOBJ_ONLINE, KOBJ_OFFLINE, KOBJ_BIND, KOBJ_UNBIND,
};

extern const struct sysfs_ops kobj_sysfs_ops;
extern struct kobject *kernel_kobj, *firmware_kobj, *fs_kobj, *power_kobj, *mm_kobj, *hypervisor_kobj;

static inline const char *kobject_name(const struct kobject *kobj) { return kobj->name; }
void kobject_init(struct kobject *kobj, const struct kobj_type *ktype);
__printf(3, 4) int kobject_add(struct kobject *kobj, struct kobject *parent, const char *fmt, ...);
__printf(4, 5) int kobject_init_and_add(struct kobject *kobj, const struct kobj_type *ktype, struct kobject *parent,
					const char *fmt, ...);
struct kobject *kobject_create_and_add(const char *name, struct kobject *parent);
__printf(2, 3) int kobject_set_name(struct kobject *kobj, const char *name, ...);
struct kobject *kobject_get(struct kobject *kobj);
struct kobject *kobject_get_unless_zero(struct kobject *kobj);
void kobject_put(struct kobject *kobj);
void kobject_del(struct kobject *kobj);
char *kobject_get_path(const struct kobject *kobj, gfp_t flags);
int kobject_uevent(struct kobject *kobj, enum kobject_action action);
int kobject_uevent_env(struct kobject *kobj, enum kobject_action action, char *envp[]);
struct kset *kset_create_and_add(const char *name, const struct kset_uevent_ops *ops, struct kobject *parent);
int kset_register(struct kset *kset);
void kset_unregister(struct kset *kset);

#endif /* _PKVM_EMU_LINUX_KOBJECT_H_ */
