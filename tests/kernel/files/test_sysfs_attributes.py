"""Attributes of kobjects, devices, classes and modules; groups, binary files, links, character devices with nodes."""

from __future__ import annotations

import pytest

from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.fs.node import O_RDWR, POLLERR, POLLPRI
from pkvm_emu.system import System

DRIVER = r"""
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/sysfs.h>

static int value = 5;
static char raw[16] = "0123456789abcdef";
static struct kobject *top, *below;

static ssize_t value_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s: %d\n", kobject_name(kobj), value);
}
static ssize_t value_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf, size_t count)
{
	if (buf[0] < '0' || buf[0] > '9')
		return -EINVAL;
	value = buf[0] - '0';
	sysfs_notify(kobj, NULL, "value");
	return count;
}
static struct kobj_attribute value_attr = __ATTR_RW(value);
static struct kobj_attribute blind_attr = __ATTR(blind, 0644, NULL, value_store);
static ssize_t wrong_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf + 1, "never");
}
static struct kobj_attribute wrong_attr = __ATTR_RO(wrong);

static ssize_t raw_read(struct file *file, struct kobject *kobj, struct bin_attribute *attr, char *buf, loff_t at, size_t n)
{
	memcpy(buf, raw + at, n);
	return n;
}
static ssize_t raw_write(struct file *file, struct kobject *kobj, struct bin_attribute *attr, char *buf, loff_t at, size_t n)
{
	memcpy(raw + at, buf, n);
	return n;
}
static BIN_ATTR(raw, 0644, raw_read, raw_write, sizeof(raw));

static umode_t hide(struct kobject *kobj, struct attribute *attr, int index) { return index == 1 ? 0 : attr->mode; }
static struct attribute *group_attrs[] = { &value_attr.attr, &blind_attr.attr, NULL };
static const struct attribute_group group = { .name = "group", .attrs = group_attrs, .is_visible = hide };

struct gadget { struct kobject kobj; int id; };
static ssize_t gadget_show(struct kobject *kobj, struct attribute *attr, char *buf)
{
	return sysfs_emit(buf, "gadget %d %s\n", container_of(kobj, struct gadget, kobj)->id, attr->name);
}
static const struct sysfs_ops gadget_ops = { .show = gadget_show };
static struct attribute gadget_id = { .name = "id", .mode = 0444 };
static struct attribute gadget_wo = { .name = "wo", .mode = 0644 };
static struct attribute *gadget_attrs[] = { &gadget_id, &gadget_wo, NULL };
ATTRIBUTE_GROUPS(gadget);
static void gadget_release(struct kobject *kobj) { pr_info("gadget %d released\n", container_of(kobj, struct gadget, kobj)->id); }
static const struct kobj_type gadget_type = {
	.release = gadget_release, .sysfs_ops = &gadget_ops, .default_groups = gadget_groups,
};
static struct gadget gadget = { .id = 3 };

static ssize_t speed_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s %d\n", dev_name(dev), *(int *)dev_get_drvdata(dev));
}
static DEVICE_ATTR_RO(speed);
static DEVICE_ATTR(mute, 0644, NULL, NULL);
static struct attribute *unit_attrs[] = { &dev_attr_speed.attr, NULL };
ATTRIBUTE_GROUPS(unit);

static dev_t first;
static struct cdev cdev;
static struct class *cls;
static struct device *units[2];
static int unit_open(struct inode *inode, struct file *file)
{
	pr_info("unit %u of %d\n", iminor(inode), inode->i_cdev == &cdev);
	return stream_open(inode, file);
}
static ssize_t unit_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	return pos ? -EIO : copy_to_user(buf, "unit", min_t(size_t, count, 4)) ? -EFAULT : min_t(size_t, count, 4);
}
static const struct file_operations unit_fops = { .owner = THIS_MODULE, .open = unit_open, .read = unit_read };

static int __init demo_init(void)
{
	int ret, i;

	top = kobject_create_and_add("demo", kernel_kobj);
	below = kobject_create_and_add("below", top);
	ret = sysfs_create_file(top, &value_attr.attr) ?: sysfs_create_file(top, &blind_attr.attr) ?:
		sysfs_create_file(top, &wrong_attr.attr) ?: sysfs_create_bin_file(top, &bin_attr_raw) ?:
		sysfs_create_group(top, &group) ?: sysfs_create_link(below, top, "up");
	if (ret)
		return ret;
	pr_info("twice %d, same name %d\n", sysfs_create_file(top, &value_attr.attr),
		kobject_create_and_add("below", top) == NULL);
	ret = kobject_init_and_add(&gadget.kobj, &gadget_type, top, "gadget%d", 3);
	if (ret)
		return ret;
	ret = alloc_chrdev_region(&first, 4, 2, "units");
	if (ret)
		return ret;
	cdev_init(&cdev, &unit_fops);
	cdev.owner = THIS_MODULE;
	ret = cdev_add(&cdev, first, 2);
#if PKVM_EMU_KERNEL_CODE >= 6004
	cls = class_create("units");
	pr_info("class twice %ld\n", PTR_ERR(class_create("units")));
#else
	cls = class_create(THIS_MODULE, "units");
	pr_info("class twice %ld\n", PTR_ERR(class_create(THIS_MODULE, "units")));
#endif
	cls->dev_groups = unit_groups;
	for (i = 0; i < 2; i++)
		units[i] = device_create(cls, NULL, first + i, &value, "unit%d", i);
	pr_info("device twice %ld, region %d\n", PTR_ERR(device_create(cls, NULL, first, NULL, "unit0")),
		register_chrdev_region(first + 1, 1, "thief"));
	return ret ?: device_create_file(units[0], &dev_attr_mute);
}
static void __exit demo_exit(void)
{
	device_destroy(cls, first);
	device_destroy(cls, first + 1);
	class_destroy(cls);
	cdev_del(&cdev);
	unregister_chrdev_region(first, 2);
	kobject_put(&gadget.kobj);
	sysfs_remove_group(top, &group);
	kobject_put(below);
	kobject_put(top);
}
module_init(demo_init);
module_exit(demo_exit);
MODULE_LICENSE("GPL");
"""
TOP = "/sys/kernel/demo"


def said(system: System) -> str:
    return "\n".join(record.text for record in system.kernel.log)


def errno_of(system: System, path: str, text: str | None = None) -> int:
    with pytest.raises(FsError) as caught:
        system.fs.read(path) if text is None else system.fs.write(path, text)
    return caught.value.errno


def test_attributes_run_show_and_store(system: System) -> None:
    fs = system.fs
    assert fs.read(f"{TOP}/value") == "demo: 5\n"
    assert fs.write(f"{TOP}/value", "7\n") == 2
    assert fs.read(f"{TOP}/group/value") == "demo: 7\n"
    assert fs.list(f"{TOP}/group") == ["value"]
    assert fs.read(f"{TOP}/below/up/value") == "demo: 7\n"
    assert fs.read(f"{TOP}/gadget3/id") == "gadget 3 id\n"


def test_permissions_and_missing_functions(system: System) -> None:
    assert errno_of(system, f"{TOP}/value", "x") == 22
    assert errno_of(system, f"{TOP}/blind") == 5
    assert errno_of(system, f"{TOP}/gadget3/id", "1") == 13
    assert errno_of(system, f"{TOP}/gadget3/wo", "1") == 13
    assert errno_of(system, "/sys/class/units/unit0/mute") == 5


def test_names_that_are_taken(system: System) -> None:
    log = said(system)
    assert "twice -17, same name 1" in log
    assert "sysfs: cannot create duplicate filename '/kernel/demo/value'" in log
    assert "class twice -17" in log
    assert "device twice -17, region -16" in log


def test_emitting_into_no_page_is_warned_about(newest: System) -> None:
    assert newest.fs.read(f"{TOP}/wrong") == ""
    assert "invalid sysfs_emit: buf:" in said(newest)


def test_binary_attributes_have_offsets_and_a_size(system: System) -> None:
    handle = system.fs.open(f"{TOP}/raw", O_RDWR)
    assert handle.lseek(10) == 10
    assert (handle.read(), handle.read()) == (b"abcdef", b"")
    assert handle.lseek(14) == 14
    assert handle.write(b"XYZ") == 2
    assert system.fs.read_bytes(f"{TOP}/raw") == b"0123456789abcdXY"


def test_notified_files_are_seen_by_poll(newest: System) -> None:
    handle = newest.fs.open(f"{TOP}/value", O_RDWR)
    assert not handle.poll() & POLLPRI
    newest.fs.write(f"{TOP}/value", "3")
    assert handle.poll() & (POLLPRI | POLLERR) == POLLPRI | POLLERR
    handle.lseek(0)
    handle.read()
    assert not handle.poll() & POLLPRI


def test_devices_of_a_class_have_nodes_and_groups(system: System) -> None:
    node = system.fs.resolve("/dev/unit1")
    assert node.device is not None
    assert node.device[1] == 5
    assert system.fs.read("/sys/class/units/unit1/dev") == f"{node.device[0]}:5\n"
    assert system.fs.read("/sys/devices/virtual/units/unit0/speed") == "unit0 5\n"
    with system.fs.open("/dev/unit1") as handle:
        assert system.modules["filedrv"].references == 2
        assert (handle.read(), handle.read(2)) == (b"unit", b"un")
        assert handle.offset == 0
    assert "unit 5 of 1" in said(system)
    assert system.fs.read("/sys/class/units/unit0/uevent").startswith("MAJOR=")


def test_unloading_leaves_no_file_and_releases_what_was_made(newest: System) -> None:
    from pkvm_emu.kernel.unload import unload_module

    handle = newest.fs.open(f"{TOP}/value")
    unload_module(newest.kernel, newest.kernel.loader.modules["filedrv"])
    assert [newest.fs.find(path) for path in (TOP, "/dev/unit0", "/sys/class/units")] == [None] * 3
    assert "gadget 3 released" in said(newest)
    assert handle.read() == -19
