"""Modules' files below /sys/kernel/debug: values, their own operations, simple attributes, names that are taken, removal."""

from __future__ import annotations

import pytest

from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.fs.node import O_RDWR
from pkvm_emu.system import System

DRIVER = r"""
#include <linux/debugfs.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>

static u8 small = 7;
static u16 word = 0x1234;
static u32 number = 42;
static u64 big = 0xfedcba9876543210;
static atomic_t counter = ATOMIC_INIT(-5);
static bool enabled = true;
static char blob_text[] = "blob\n";
static struct debugfs_blob_wrapper blob = { blob_text, 5 };
static u32 array[] = { 1, 2, 3 };
static struct debugfs_u32_array array_of = { array, 3 };
static struct dentry *root;
static u64 level = 3;

static int level_get(void *data, u64 *value) { *value = *(u64 *)data; return 0; }
static int level_set(void *data, u64 value)
{
	if (value > 9)
		return -ERANGE;
	*(u64 *)data = value;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(level_fops, level_get, level_set, "level %llu\n");
DEFINE_SIMPLE_ATTRIBUTE(watch_fops, level_get, NULL, "0x%llx\n");

static int state_show(struct seq_file *m, void *unused)
{
	seq_printf(m, "number %u of %s\n", number, (char *)m->private);
	seq_puts(m, "done");
	seq_putc(m, '\n');
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static ssize_t drop_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	debugfs_remove(root);
	root = NULL;
	return count;
}
static const struct file_operations drop_fops = { .open = simple_open, .write = drop_write };

static int __init demo_init(void)
{
	struct dentry *sub, *again;

	root = debugfs_create_dir("demo", NULL);
	sub = debugfs_create_dir("sub", root);
	debugfs_create_u8("small", 0644, sub, &small);
	debugfs_create_x16("word", 0444, sub, &word);
	debugfs_create_u32("number", 0644, root, &number);
	debugfs_create_x64("big", 0644, root, &big);
	debugfs_create_atomic_t("counter", 0644, root, &counter);
	debugfs_create_bool("enabled", 0644, root, &enabled);
	debugfs_create_blob("blob", 0444, root, &blob);
	debugfs_create_u32_array("array", 0444, root, &array_of);
	debugfs_create_symlink("link", root, "sub/small");
	debugfs_create_file("level", 0644, root, &level, &level_fops);
	debugfs_create_file("watch", 0644, root, &level, &watch_fops);
	debugfs_create_file("state", 0444, root, "demo", &state_fops);
	debugfs_create_file("drop", 0200, root, NULL, &drop_fops);
	again = debugfs_create_dir("demo", NULL);
	pr_info("again %ld, below it %ld, file %ld\n", PTR_ERR(again), PTR_ERR(debugfs_create_dir("x", again)),
		PTR_ERR(debugfs_create_file("state", 0444, root, NULL, &state_fops)));
	pr_info("found %d\n", debugfs_lookup("sub", root) == sub);
	return 0;
}
static void __exit demo_exit(void) { debugfs_remove_recursive(root); }
module_init(demo_init);
module_exit(demo_exit);
MODULE_LICENSE("GPL");
"""
ROOT = "/sys/kernel/debug/demo"


def said(system: System) -> list[str]:
    return [record.text for record in system.kernel.log]


def test_values_read_as_the_kernel_prints_them(system: System) -> None:
    expected = {
        "sub/small": "7\n",
        "sub/word": "0x1234\n",
        "number": "42\n",
        "big": "0xfedcba9876543210\n",
        "counter": "-5\n",
        "enabled": "Y\n",
        "blob": "blob\n",
        "array": "1 2 3\n",
        "link": "7\n",
        "level": "level 3\n",
        "watch": "0x3\n",
        "state": "number 42 of demo\ndone\n",
    }
    assert {name: system.fs.read(f"{ROOT}/{name}") for name in expected} == expected


def test_written_values_arrive_in_the_module(system: System) -> None:
    fs = system.fs
    fs.write(f"{ROOT}/number", "0x10\n")
    fs.write(f"{ROOT}/sub/small", "300")
    fs.write(f"{ROOT}/enabled", "n")
    fs.write(f"{ROOT}/counter", "-9")
    fs.write(f"{ROOT}/level", "8\n")
    assert fs.read(f"{ROOT}/state") == "number 16 of demo\ndone\n"
    assert [fs.read(f"{ROOT}/{name}") for name in ("sub/small", "enabled", "counter", "watch")] == [
        "44\n",
        "N\n",
        "-9\n",
        "0x8\n",
    ]


@pytest.mark.parametrize(
    ("name", "text", "errno"),
    [
        ("level", "10", 34),
        ("level", "x", 22),
        ("watch", "1", 13),
        ("number", "maybe", 22),
        ("enabled", "q", 22),
        ("state", "x", 22),
    ],
)
def test_writes_that_are_refused(newest: System, name: str, text: str, errno: int) -> None:
    with pytest.raises(FsError) as caught:
        newest.fs.write(f"{ROOT}/{name}", text)
    assert caught.value.errno == errno


def test_names_that_are_taken_are_refused_and_told(system: System) -> None:
    assert "again -17, below it -17, file -17" in said(system)
    assert "debugfs: Directory 'demo' with parent '/' already present!" in said(system)
    assert "debugfs: File 'state' in directory 'demo' already present!" in said(system)
    assert "found 1" in said(system)


def test_a_removed_file_that_is_open_gives_eio(system: System) -> None:
    fs = system.fs
    handle = fs.open(f"{ROOT}/state")
    assert handle.read(6) == b"number"
    assert fs.write(f"{ROOT}/drop", "1") == 1
    assert handle.read() == -5
    handle.close()
    assert fs.find(ROOT) is None
    assert system.modules["filedrv"].references == 0


def test_seeking_in_a_shown_file(newest: System) -> None:
    handle = newest.fs.open(f"{ROOT}/state")
    assert handle.lseek(18) == 18
    assert handle.read() == b"done\n"
    assert handle.lseek(7) == 7
    assert handle.read(2) == b"42"
    assert handle.lseek(0, 2).error == "EINVAL"


def test_values_cannot_be_executed_like_devices(newest: System) -> None:
    handle = newest.fs.open(f"{ROOT}/level", O_RDWR)
    assert handle.ioctl(1).error == "ENOTTY"
    assert handle.lseek(0).error == "ESPIPE"
