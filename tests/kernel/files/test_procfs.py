"""Modules' files below /proc: records of a seq_file, one record, operations of their own, and what removing does."""

from __future__ import annotations

import pytest

from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.fs.node import O_RDWR
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.system import System

DRIVER = r"""
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>

static int rows = 2000;
static struct proc_dir_entry *directory, *single;

static void *rows_start(struct seq_file *m, loff_t *pos)
{
	if (*pos == 0)
		return SEQ_START_TOKEN;
	return *pos <= rows ? (void *)(unsigned long)(*pos + 1) : NULL;
}
static void *rows_next(struct seq_file *m, void *v, loff_t *pos)
{
	++*pos;
	return rows_start(m, pos);
}
static void rows_stop(struct seq_file *m, void *v) { }
static int rows_show(struct seq_file *m, void *v)
{
	if (v == SEQ_START_TOKEN) {
		seq_puts(m, "row value\n");
		return 0;
	}
	if ((unsigned long)v == 4)
		return SEQ_SKIP;
	if ((unsigned long)v == 1 + 1500)
		seq_printf(m, "%06000d\n", 0);
	seq_printf(m, "%lu %lx\n", (unsigned long)v - 1, ((unsigned long)v - 1) * 16);
	if (m->private)
		++*(int *)m->private;
	return 0;
}
static const struct seq_operations rows_ops = { rows_start, rows_stop, rows_next, rows_show };

static int one_show(struct seq_file *m, void *unused)
{
	seq_printf(m, "%s %d\n", (char *)m->private, rows);
	return 0;
}
static ssize_t rows_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	char text[16] = "";
	int i, value = 0;

	if (count >= sizeof(text))
		return -ENOSPC;
	if (copy_from_user(text, buf, count))
		return -EFAULT;
	for (i = 0; text[i] >= '0' && text[i] <= '9'; i++)
		value = value * 10 + text[i] - '0';
	if (!i)
		return -EINVAL;
	rows = value;
	return count;
}
static int rows_open(struct inode *inode, struct file *file)
{
	pr_info("data %s\n", (char *)pde_data(inode));
	return single_open(file, one_show, pde_data(inode));
}
static const struct proc_ops rows_proc_ops = {
	.proc_open = rows_open, .proc_read = seq_read, .proc_lseek = seq_lseek, .proc_release = single_release,
	.proc_write = rows_write,
};
static const struct proc_ops iter_proc_ops = {
	.proc_open = rows_open, .proc_read_iter = seq_read_iter, .proc_lseek = seq_lseek, .proc_release = single_release,
};

static int __init demo_init(void)
{
	directory = proc_mkdir("demo", NULL);
	proc_create_seq_private("rows", 0, directory, &rows_ops, sizeof(int), NULL);
	single = proc_create_single_data("one", 0400, directory, one_show, "single");
	proc_create_data("count", 0644, directory, &rows_proc_ops, "rows");
	proc_create_data("demo/iter", 0444, NULL, &iter_proc_ops, "iter");
	proc_symlink("link", directory, "one");
	pr_info("taken %d\n", proc_create("demo/one", 0, NULL, &rows_proc_ops) == NULL);
	pr_info("nowhere %d\n", proc_create("no/where", 0, NULL, &rows_proc_ops) == NULL);
	return directory && single ? 0 : -ENOMEM;
}
static void __exit demo_exit(void)
{
	proc_remove(single);
	remove_proc_entry("missing", directory);
	remove_proc_subtree("demo", NULL);
}
module_init(demo_init);
module_exit(demo_exit);
MODULE_LICENSE("GPL");
"""


def said(system: System) -> str:
    return "\n".join(record.text for record in system.kernel.log)


def expected_rows() -> str:
    lines = ["row value\n"]
    for row in range(1, 2001):
        if row == 3:
            continue
        if row == 1500:
            lines.append("0" * 6000 + "\n")
        lines.append(f"{row} {row * 16:x}\n")
    return "".join(lines)


def test_records_are_read_in_pieces_of_any_size(system: System) -> None:
    whole = expected_rows().encode()
    assert system.fs.read_bytes("/proc/demo/rows") == whole
    handle = system.fs.open("/proc/demo/rows")
    out = bytearray()
    while chunk := handle.read(3000):
        assert isinstance(chunk, bytes)
        out += chunk
    assert out == whole


def test_seeking_makes_the_records_before_and_drops_them(newest: System) -> None:
    whole = expected_rows().encode()
    handle = newest.fs.open("/proc/demo/rows")
    for offset in (5000, 17, 20000, 0):
        assert handle.lseek(offset) == offset
        assert handle.read(50) == whole[offset : offset + 50]


def test_single_records_data_and_iterators(system: System) -> None:
    assert system.fs.read("/proc/demo/one") == "single 2000\n"
    assert system.fs.read("/proc/demo/link") == "single 2000\n"
    assert system.fs.read("/proc/demo/count") == "rows 2000\n"
    assert system.fs.read("/proc/demo/iter") == "iter 2000\n"
    assert "data rows" in said(system)
    assert system.fs.resolve("/proc/demo/rows").mode == 0o444


def test_writes_reach_the_driver_and_its_errors_come_back(system: System) -> None:
    assert system.fs.write("/proc/demo/count", "12\n") == 3
    assert system.fs.read("/proc/demo/one") == "single 12\n"
    for text, errno in (("12345678901234567", 28), ("x", 22)):
        with pytest.raises(FsError) as caught:
            system.fs.write("/proc/demo/count", text)
        assert caught.value.errno == errno


def test_names_that_are_taken_or_lead_nowhere(system: System) -> None:
    log = said(system)
    assert "taken 1" in log
    assert "nowhere 1" in log
    assert "proc_dir_entry 'demo/one' already registered" in log


def test_nothing_is_left_after_reading(newest: System) -> None:
    newest.fs.read("/proc/demo/rows")
    live = len(newest.kernel.part(Slab).live)
    newest.fs.read("/proc/demo/rows")
    newest.fs.read("/proc/demo/count")
    assert len(newest.kernel.part(Slab).live) == live


def test_removal_releases_open_files(newest: System) -> None:
    from pkvm_emu.kernel.unload import unload_module

    handle = newest.fs.open("/proc/demo/count", O_RDWR)
    unload_module(newest.kernel, newest.kernel.loader.modules["filedrv"])
    assert newest.fs.find("/proc/demo") is None
    assert handle.read() == -5
    assert "name 'missing'" in said(newest)
    handle.close()
