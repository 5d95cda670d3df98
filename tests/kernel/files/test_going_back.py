"""Going back: what modules did with files is undone to the last bit, and done again the same."""

from __future__ import annotations

from pkvm_emu.kernel.fs.node import O_RDWR
from pkvm_emu.shell.session import Session
from pkvm_emu.system import System

DRIVER = r"""
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/proc_fs.h>

static u32 number;
static struct dentry *root;
static struct proc_dir_entry *entry;
static struct kobject *kobj;

static int one_show(struct seq_file *m, void *unused) { seq_printf(m, "%u\n", number); return 0; }
static void make(void)
{
	root = debugfs_create_dir("made", NULL);
	debugfs_create_u32("number", 0644, root, &number);
	entry = proc_create_single("made", 0, NULL, one_show);
	kobj = kobject_create_and_add("made", NULL);
}
static void unmake(void)
{
	debugfs_remove(root);
	proc_remove(entry);
	kobject_put(kobj);
}
static ssize_t switch_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	u8 wanted;

	if (get_user(wanted, buf))
		return -EFAULT;
	if (wanted == '1')
		make();
	else
		unmake();
	return count;
}
static const struct file_operations switch_fops = { .owner = THIS_MODULE, .write = switch_write };
static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "switch", .fops = &switch_fops };
module_misc_device(device);
MODULE_LICENSE("GPL");
"""
PATHS = ("/sys/kernel/debug/made/number", "/proc/made", "/sys/made")


def test_files_come_and_go_with_snapshots(system: System) -> None:
    handle = system.fs.open("/dev/switch", O_RDWR)
    before = system.snapshot()
    digest = system.machine.digest()
    handle.write(b"1")
    made = system.machine.digest()
    assert all(system.fs.find(path) for path in PATHS)
    assert made != digest
    system.restore(before)
    assert not any(system.fs.find(path) for path in PATHS)
    assert system.machine.digest() == digest
    handle.write(b"1")
    assert system.machine.digest() == made


def test_what_is_unmade_is_there_again_after_going_back(newest: System) -> None:
    handle = newest.fs.open("/dev/switch", O_RDWR)
    handle.write(b"1")
    newest.fs.write(PATHS[0], "7")
    before = newest.snapshot()
    handle.write(b"0")
    assert not any(newest.fs.find(path) for path in PATHS)
    newest.restore(before)
    assert newest.fs.read("/proc/made") == "7\n"


def test_a_module_with_an_open_file_cannot_be_removed(newest: System) -> None:
    out = bytearray()
    handle = newest.fs.open("/dev/switch", O_RDWR)
    session = Session(newest, out.extend, out.extend)
    session.run("rmmod filedrv")
    assert b"in use" in out
    handle.close()
    session.run("rmmod filedrv")
    assert newest.fs.find("/dev/switch") is None
