/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _PKVM_EMU_LINUX_DEVICE_DRIVER_H_
#define _PKVM_EMU_LINUX_DEVICE_DRIVER_H_

#include <linux/mod_devicetable.h>
#include <linux/types.h>
struct device;
struct module;
struct dev_pm_ops;
struct device_driver {
	const char *name;
	const void *bus;
	struct module *owner;
	const char *mod_name;
	bool suppress_bind_attrs;
	int probe_type;
	const struct of_device_id *of_match_table;
	const void *acpi_match_table;
	int (*probe)(struct device *dev);
	void (*sync_state)(struct device *dev);
	int (*remove)(struct device *dev);
	void (*shutdown)(struct device *dev);
	int (*suspend)(struct device *dev, int state);
	int (*resume)(struct device *dev);
	const void *groups;
	const void *dev_groups;
	const struct dev_pm_ops *pm;
	void (*coredump)(struct device *dev);
	void *p;
	u64 android_kabi_reserved[4];
};

#endif /* _PKVM_EMU_LINUX_DEVICE_DRIVER_H_ */
