"""A misc device as vendors write them: opened, read, written, sought, ioctl'ed, polled, mapped and closed."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.kernel.fs import FsError
from pkvm_emu.kernel.fs.ioctl import io, ior, iow, iowr
from pkvm_emu.kernel.fs.node import O_RDWR, O_WRONLY
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.system import System

DRIVER = r"""
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

struct pair { u32 left, right; u64 sum; };
#define RESET	_IO('p', 0)
#define COUNT	_IOR('p', 1, u32)
#define LIMIT	_IOW('p', 2, u32)
#define ADD	_IOWR('p', 3, struct pair)
#define LIMIT_OF_STATE	64

struct state { int number; u32 limit; size_t used; char text[LIMIT_OF_STATE]; struct fasync_struct *waiting; };
static int opened;
static char *page;

static int foo_open(struct inode *inode, struct file *file)
{
	struct state *state = kzalloc(sizeof(*state), GFP_KERNEL);

	if (!state)
		return -ENOMEM;
	if (opened >= 3) {
		kfree(state);
		return -EBUSY;
	}
	pr_info("open of minor %u as %s\n", iminor(inode), ((struct miscdevice *)file->private_data)->name);
	state->number = ++opened;
	state->limit = 10;
	file->private_data = state;
	return 0;
}
static int foo_release(struct inode *inode, struct file *file)
{
	struct state *state = file->private_data;

	pr_info("release of %d\n", state->number);
	opened--;
	kfree(state);
	return 0;
}
static ssize_t foo_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct state *state = file->private_data;

	if (!state->used && (file->f_flags & O_NONBLOCK))
		return -EAGAIN;
	return simple_read_from_buffer(buf, count, pos, state->text, state->used);
}
static ssize_t foo_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	struct state *state = file->private_data;

	if (*pos >= LIMIT_OF_STATE)
		return -ENOSPC;
	count = simple_write_to_buffer(state->text, LIMIT_OF_STATE, pos, buf, count);
	if ((ssize_t)count > 0)
		state->used = *pos;
	kill_fasync(&state->waiting, 29, 0x20001);
	return count;
}
static loff_t foo_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, LIMIT_OF_STATE);
}
static long foo_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct state *state = file->private_data;
	struct pair pair;

	switch (cmd) {
	case RESET:
		state->used = 0;
		return arg == 77 ? 7 : 0;
	case COUNT:
		return put_user((u32)state->used, (u32 __user *)arg);
	case LIMIT:
		return get_user(state->limit, (u32 __user *)arg) ?: (state->limit > 100 ? -ERANGE : 0);
	case ADD:
		if (copy_from_user(&pair, (void __user *)arg, sizeof(pair)))
			return -EFAULT;
		pair.sum = (u64)pair.left + pair.right;
		return copy_to_user((void __user *)arg, &pair, sizeof(pair)) ? -EFAULT : 0;
	}
	return -ENOTTY;
}
static __poll_t foo_poll(struct file *file, struct poll_table_struct *table)
{
	struct state *state = file->private_data;

	poll_wait(file, (void *)state, table);
	return EPOLLOUT | (state->used ? EPOLLIN : 0);
}
static vm_fault_t foo_fault(struct vm_fault *vmf)
{
	if (vmf->pgoff != 3)
		return VM_FAULT_SIGBUS;
	return vmf_insert_pfn(vmf->vma, vmf->address, virt_to_phys(page) >> PAGE_SHIFT);
}
static void foo_close(struct vm_area_struct *vma) { pr_info("unmapped %d\n", ((struct state *)vma->vm_private_data)->number); }
static const struct vm_operations_struct foo_vm_ops = { .fault = foo_fault, .close = foo_close };
static int foo_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (vma->vm_end - vma->vm_start > 2 * PAGE_SIZE)
		return -EINVAL;
	vma->vm_private_data = file->private_data;
	vma->vm_ops = &foo_vm_ops;
	if (vma->vm_pgoff)
		return 0;
	return remap_pfn_range(vma, vma->vm_start, virt_to_phys(page) >> PAGE_SHIFT, PAGE_SIZE, vma->vm_page_prot);
}
static int foo_fasync(int fd, struct file *file, int on)
{
	return fasync_helper(fd, file, on, &((struct state *)file->private_data)->waiting);
}
static const struct file_operations foo_fops = {
	.owner = THIS_MODULE, .open = foo_open, .release = foo_release, .read = foo_read, .write = foo_write,
	.llseek = foo_llseek, .unlocked_ioctl = foo_ioctl, .poll = foo_poll, .mmap = foo_mmap, .fasync = foo_fasync,
};
static const struct file_operations bare_fops = { .owner = THIS_MODULE };
static struct miscdevice foo = { .minor = MISC_DYNAMIC_MINOR, .name = "foo", .fops = &foo_fops, .mode = 0660 };
static struct miscdevice bare = { .minor = 200, .name = "bare", .nodename = "sub/bare", .fops = &bare_fops };
static struct miscdevice taken = { .minor = 200, .name = "taken", .fops = &bare_fops };

static int __init foo_init(void)
{
	int ret;

	page = kzalloc(PAGE_SIZE * 2, GFP_KERNEL);
	ret = misc_register(&foo) ?: misc_register(&bare);
	pr_info("minor %d, taken gives %d\n", foo.minor, misc_register(&taken));
	return ret;
}
static void __exit foo_exit(void)
{
	misc_deregister(&bare);
	misc_deregister(&foo);
	kfree(page);
}
module_init(foo_init);
module_exit(foo_exit);
MODULE_LICENSE("GPL");
"""
RESET, COUNT, LIMIT, ADD = io("p", 0), ior("p", 1, 4), iow("p", 2, 4), iowr("p", 3, 16)


def said(system: System) -> list[str]:
    return [record.text for record in system.kernel.log]


def test_registering_makes_a_node_and_a_class_device(system: System) -> None:
    assert "minor 127, taken gives -16" in said(system)
    node = system.fs.resolve("/dev/foo")
    assert (node.type_letter, node.device, node.mode) == ("c", (10, 127), 0o660)
    assert system.fs.resolve("/dev/sub/bare").device == (10, 200)
    assert system.fs.read("/sys/class/misc/foo/dev") == "10:127\n"
    assert "DEVNAME=foo" in system.fs.read("/sys/devices/virtual/misc/foo/uevent")


def test_procfs_lists_devices(newest: System) -> None:
    assert newest.fs.read("/proc/misc") == "200 bare\n127 foo\n"
    assert " 10 misc\n" in newest.fs.read("/proc/devices")


def test_a_file_without_an_end_is_not_read_as_a_whole(newest: System) -> None:
    with pytest.raises(FsError) as caught:
        newest.fs.read_bytes("/dev/zero")
    assert caught.value.errno == 27


def test_two_openers_have_their_own_data_and_positions(system: System) -> None:
    first, second = (system.fs.open("/dev/foo", O_RDWR) for _ in range(2))
    assert "open of minor 127 as foo" in said(system)
    assert first.write(b"hello") == 5
    assert second.write(b"and goodbye") == 11
    assert first.lseek(0) == 0
    assert (first.read(3), first.read(), first.read()) == (b"hel", b"lo", b"")
    assert second.lseek(-7, 2) == 57
    assert second.lseek(4) == 4
    assert second.read() == b"goodbye"


def test_closing_calls_release_and_unpins_the_module(system: System) -> None:
    module = system.modules["filedrv"]
    handle = system.fs.open("/dev/foo", O_RDWR)
    assert module.references == 1
    handle.close()
    handle.close()
    assert module.references == 0
    assert said(system).count("release of 1") == 1
    assert handle.read() == -9


def test_an_open_that_the_driver_refuses_leaves_nothing_behind(system: System) -> None:
    handles = [system.fs.open("/dev/foo", O_RDWR) for _ in range(3)]
    live = len(system.kernel.part(Slab).live)
    with pytest.raises(FsError) as caught:
        system.fs.open("/dev/foo")
    assert (caught.value.strerror, caught.value.errno) == ("Device or resource busy", 16)
    assert len(system.kernel.part(Slab).live) == live
    assert system.modules["filedrv"].references == len(handles)


def test_ioctls_take_numbers_and_buffers(system: System) -> None:
    handle = system.fs.open("/dev/foo", O_RDWR)
    handle.write(b"12345")
    assert handle.ioctl(COUNT, bytes(4)).data == struct.pack("<I", 5)
    assert handle.ioctl(RESET, 77) == 7
    assert handle.ioctl(COUNT, bytes(4)).data == bytes(4)
    pair = bytearray(struct.pack("<IIQ", 0xFFFF_FFFF, 2, 0))
    assert handle.ioctl(ADD, pair) == 0
    assert struct.unpack("<IIQ", pair) == (0xFFFF_FFFF, 2, 0x1_0000_0001)
    assert handle.ioctl(LIMIT, struct.pack("<I", 99)) == 0


@pytest.mark.parametrize(
    ("command", "argument", "error"),
    [
        (io("p", 9), 0, "ENOTTY"),
        (COUNT, 0, "EFAULT"),
        (COUNT, 0xFFFF_FF80_0000_0000, "EFAULT"),
        (LIMIT, 0x1000, "EFAULT"),
        (LIMIT, struct.pack("<I", 101), "ERANGE"),
        (ADD, 0x1000, "EFAULT"),
        (ADD, bytes(8), "EFAULT"),
    ],
)
def test_a_bad_ioctl_gets_its_errno(system: System, command: int, argument: int | bytes, error: str) -> None:
    handle = system.fs.open("/dev/foo", O_RDWR)
    result = handle.ioctl(command, argument)
    assert result.error == error
    assert repr(result).endswith(f"(-{error})")


def test_a_full_device_says_so(newest: System) -> None:
    handle = newest.fs.open("/dev/foo", O_RDWR)
    assert handle.write(b"x" * 70) == 64
    assert handle.write(b"x").error == "ENOSPC"
    assert handle.lseek(65).error == "EINVAL"


def test_poll_says_what_is_ready(system: System) -> None:
    handle = system.fs.open("/dev/foo", O_RDWR)
    assert handle.poll() == 4
    handle.write(b"x")
    assert handle.poll() == 5


def test_a_nonblocking_read_of_nothing_is_again(newest: System) -> None:
    handle = newest.fs.open("/dev/foo", O_RDWR | 0o4000)
    assert handle.read() == -11
    assert handle.ioctl(0x5421, bytes(4)) == 0
    assert handle.read() == b""


def test_a_mapping_shares_the_drivers_page(system: System) -> None:
    handle = system.fs.open("/dev/foo", O_RDWR)
    mapping = handle.mmap(4096)
    assert not isinstance(mapping, int)
    mapping.write(100, b"shared")
    other = system.fs.open("/dev/foo").mmap(4096, prot=1)
    assert not isinstance(other, int)
    assert other.read(100, 6) == b"shared"
    with pytest.raises(FsError):
        other.write(0, b"x")
    mapping.close()
    assert "unmapped 1" in said(system)
    with pytest.raises(FsError):
        mapping.read(0, 1)


def test_pages_come_when_they_are_touched(system: System) -> None:
    handle = system.fs.open("/dev/foo", O_RDWR)
    whole = handle.mmap(8192, offset=3 * 4096)
    assert not isinstance(whole, int)
    whole.write(0, b"late")
    assert len(whole.pages) == 1
    with pytest.raises(FsError) as caught:
        whole.read(4096, 1)
    assert caught.value.errno == 14
    assert handle.mmap(3 * 4096) == -22
    assert handle.mmap(4096, offset=5) == -22


def test_a_driver_without_operations_answers_as_the_kernel(system: System) -> None:
    handle = system.fs.open("/dev/sub/bare", O_RDWR)
    errors = [result.error for result in (handle.read(), handle.write(b"x"), handle.lseek(0), handle.ioctl(1))]  # type: ignore[union-attr]
    assert errors == ["EINVAL", "EINVAL", "ESPIPE", "ENOTTY"]
    assert handle.mmap(4096) == -19
    assert handle.poll() == 0x145
    assert system.fs.open("/dev/sub/bare", O_WRONLY).read() == -9


def test_signals_reach_those_that_asked(newest: System) -> None:
    handle = newest.fs.open("/dev/foo", O_RDWR)
    assert handle.ioctl(0x5452, struct.pack("<I", 1)) == 0
    handle.write(b"x")
    assert handle.data["signals"] == ((29, 0x20001),)
    handle.close()


def test_a_snapshot_brings_open_files_back(newest: System) -> None:
    handle = newest.fs.open("/dev/foo", O_RDWR)
    handle.write(b"before")
    before = newest.snapshot()
    handle.write(b"after")
    handle.close()
    newest.restore(before)
    assert handle.is_open
    assert handle.lseek(0) == 0
    assert handle.read() == b"before"


def test_a_node_without_a_driver_is_enxio(newest: System) -> None:
    newest.fs.mknod("/dev/nobody", 250, 3)
    with pytest.raises(FsError) as caught:
        newest.fs.open("/dev/nobody")
    assert caught.value.errno == 6
    newest.fs.mknod("/tmp/same", 10, 127)
    assert newest.fs.open("/tmp/same", O_RDWR).write(b"x") == 1


def test_rmmod_takes_the_files_away(newest: System) -> None:
    from pkvm_emu.kernel.unload import unload_module

    unload_module(newest.kernel, newest.kernel.loader.modules["filedrv"])
    assert newest.fs.find("/dev/foo") is None
    assert newest.fs.find("/sys/class/misc/foo") is None
