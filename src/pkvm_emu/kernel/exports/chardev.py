"""Character devices (``fs/char_dev.c``) and misc devices (``drivers/char/misc.c``)."""

from __future__ import annotations

import struct

from pkvm_emu.abi.errno import EBUSY, EINVAL, ENOMEM, errno_of
from pkvm_emu.abi.file_structs import Cdev, Kobject, MiscDevice
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.fs.chrdevs import MINOR_BITS, MINOR_MASK, MISC_MAJOR, Chrdevs
from pkvm_emu.kernel.fs.device_model import DeviceModel
from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.guest_access import load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import U32, Ptr

_DYNAMIC_MINOR, _DYNAMIC_COUNT = 255, 128
#: From this line on minors above 255 are given out when the first 128 are taken.
_MANY_MISC_MINORS = (6, 4)
_NAME_LIMIT = 64


# Numbers


@kernel_symbol("alloc_chrdev_region", runs_guest=True)
def alloc_chrdev_region(kernel: Kernel, device: Ptr, first: U32, count: U32, name: Ptr) -> int:
    """A free major with ``count`` minors from ``first`` on; 0 or -errno."""
    major = kernel.part(Chrdevs).register(0, first, count, text(kernel, name)[: _NAME_LIMIT - 1])
    if major < 0:
        return major
    store_uint(kernel, device, major << MINOR_BITS | first, 4)
    return 0


@kernel_symbol("register_chrdev_region", runs_guest=True)
def register_chrdev_region(kernel: Kernel, start: U32, count: U32, name: Ptr) -> int:
    """Take device numbers, of several majors if need be; 0, -EBUSY, -EINVAL."""
    part, label = kernel.part(Chrdevs), text(kernel, name)[: _NAME_LIMIT - 1]
    done: list[tuple[int, int, int]] = []
    at, end = start, start + count
    while at < end:
        major, minor = at >> MINOR_BITS, at & MINOR_MASK
        here = min(end, (major + 1) << MINOR_BITS) - at
        result = part.register(major, minor, here, label)
        if result < 0:
            for taken in done:
                part.unregister(*taken)
            return result
        done.append((result, minor, here))
        at += here
    return 0


@kernel_symbol("unregister_chrdev_region")
def unregister_chrdev_region(kernel: Kernel, start: U32, count: U32) -> None:
    """Give device numbers back."""
    at, end = start, start + count
    while at < end:
        here = min(end, ((at >> MINOR_BITS) + 1) << MINOR_BITS) - at
        kernel.part(Chrdevs).unregister(at >> MINOR_BITS, at & MINOR_MASK, here)
        at += here


# struct cdev


@kernel_symbol("cdev_init", runs_guest=True)
def cdev_init(kernel: Kernel, cdev: Ptr, operations: Ptr) -> None:
    """Make a ``struct cdev`` ready."""
    store(kernel, cdev, bytes(Cdev.BYTES))
    store(kernel, cdev + Cdev.LIST, struct.pack("<QQ", cdev + Cdev.LIST, cdev + Cdev.LIST))
    kernel.part(Kobjects).initialise(cdev, 0)
    store_uint(kernel, cdev + Cdev.OPS, operations, 8)


@kernel_symbol("cdev_alloc", runs_guest=True)
def cdev_alloc(kernel: Kernel) -> int:
    """A new one, or NULL."""
    cdev = kernel.part(Slab).kmalloc(Cdev.BYTES, line_facts(kernel.generation.kernel).gfp_zero)
    if cdev is None:
        return 0
    cdev_init(kernel, cdev, 0)
    kernel.part(Chrdevs).allocated[cdev] = True
    return cdev


@kernel_symbol("cdev_add", runs_guest=True)
def cdev_add(kernel: Kernel, cdev: Ptr, device: U32, count: U32) -> int:
    """Let a driver answer for device numbers from now on; 0, or -EBUSY (after a warning) for number 0."""
    if not device:
        warn(kernel, "fs/char_dev.c")
        return -EBUSY
    store_uint(kernel, cdev + Cdev.DEV, device, 4)
    store_uint(kernel, cdev + Cdev.COUNT, count, 4)
    result = kernel.part(Chrdevs).add(cdev, device, count)
    parent = load_u64(kernel, cdev + Kobject.PARENT)
    if not result and parent:
        kernel.part(Kobjects).get(parent)
    return result


@kernel_symbol("cdev_del", runs_guest=True)
def cdev_del(kernel: Kernel, cdev: Ptr) -> None:
    """No further open finds the driver; files that are open stay."""
    part = kernel.part(Chrdevs)
    part.remove(cdev)
    parent = load_u64(kernel, cdev + Kobject.PARENT)
    if parent:
        kernel.part(Kobjects).put(parent)
    if part.allocated.pop(cdev, False):
        kernel.part(Slab).kfree(cdev, "cdev_del")


@kernel_symbol("cdev_set_parent", runs_guest=True)
def cdev_set_parent(kernel: Kernel, cdev: Ptr, kobject: Ptr) -> None:
    """Keep an object for as long as the cdev is there."""
    store_uint(kernel, cdev + Kobject.PARENT, kobject, 8)


@kernel_symbol("cdev_device_add", runs_guest=True)
def cdev_device_add(kernel: Kernel, cdev: Ptr, device: Ptr) -> int:
    """``cdev_add`` and ``device_add`` in one; 0 or -errno."""
    model = kernel.part(DeviceModel)
    number = model.number(device)
    if number:
        cdev_set_parent(kernel, cdev, device)
        result = cdev_add(kernel, cdev, number, 1)
        if result:
            return result
    result = model.add(device)
    if result and number:
        cdev_del(kernel, cdev)
    return result


@kernel_symbol("cdev_device_del", runs_guest=True)
def cdev_device_del(kernel: Kernel, cdev: Ptr, device: Ptr) -> None:
    """The opposite."""
    model = kernel.part(DeviceModel)
    number = model.number(device)
    model.remove(device)
    if number:
        cdev_del(kernel, cdev)


@kernel_symbol("__register_chrdev", runs_guest=True)
def register_chrdev(kernel: Kernel, major: U32, first: U32, count: U32, name: Ptr, operations: Ptr) -> int:
    """Numbers and a cdev at once; 0, the major where 0 asked for a free one, or -errno."""
    part = kernel.part(Chrdevs)
    got = part.register(major, first, count, text(kernel, name)[: _NAME_LIMIT - 1])
    if got < 0:
        return got
    cdev = cdev_alloc(kernel)
    if not cdev:
        part.unregister(got, first, count)
        return -ENOMEM
    store_uint(kernel, cdev + Cdev.OWNER, load_u64(kernel, operations), 8)
    store_uint(kernel, cdev + Cdev.OPS, operations, 8)
    cdev_add(kernel, cdev, got << MINOR_BITS | first, count)
    return 0 if major else got


@kernel_symbol("__unregister_chrdev", runs_guest=True)
def unregister_chrdev(kernel: Kernel, major: U32, first: U32, count: U32, name: Ptr) -> None:
    """The opposite."""
    part = kernel.part(Chrdevs)
    cdev = part.devices.get((major << MINOR_BITS | first, count))
    if cdev is not None:
        cdev_del(kernel, cdev)
    part.unregister(major, first, count)


# Misc devices


def _free_minor(kernel: Kernel) -> int:
    taken = kernel.part(Chrdevs).misc
    minor = next((minor for minor in range(_DYNAMIC_COUNT - 1, -1, -1) if minor not in taken), None)
    if minor is None and kernel.generation.kernel >= _MANY_MISC_MINORS:
        minor = next((minor for minor in range(_DYNAMIC_MINOR + 1, MINOR_MASK + 1) if minor not in taken), None)
    return -EBUSY if minor is None else minor


@kernel_symbol("misc_register", runs_guest=True)
def misc_register(kernel: Kernel, misc: Ptr) -> int:
    """A device of major 10 with its node in /dev and its class device; 0, -EBUSY (minor taken), or what device_add said."""
    part, model = kernel.part(Chrdevs), kernel.part(DeviceModel)
    if not load_u64(kernel, misc + MiscDevice.FOPS) or not load_u64(kernel, misc + MiscDevice.NAME):
        return -EINVAL
    place = misc + MiscDevice.LIST
    store(kernel, place, struct.pack("<QQ", place, place))
    minor = load_u32(kernel, misc)
    dynamic = minor == _DYNAMIC_MINOR
    if dynamic:
        minor = _free_minor(kernel)
        if minor < 0:
            return minor
        store_uint(kernel, misc, minor, 4)
    elif minor in part.misc:
        return -EBUSY
    part.misc[minor] = misc
    device = model.create(
        model.misc_class(),
        load_u64(kernel, misc + MiscDevice.PARENT),
        MISC_MAJOR << MINOR_BITS | minor,
        misc,
        load_u64(kernel, misc + MiscDevice.GROUPS),
        text(kernel, load_u64(kernel, misc + MiscDevice.NAME)),
    )
    if device < 0 or errno_of(device) is not None:
        del part.misc[minor]
        if dynamic:
            store_uint(kernel, misc, _DYNAMIC_MINOR, 4)
        return device
    store_uint(kernel, misc + MiscDevice.THIS_DEVICE, device, 8)
    return 0


@kernel_symbol("misc_deregister", runs_guest=True)
def misc_deregister(kernel: Kernel, misc: Ptr) -> None:
    """Take it away: opening the node gives -ENODEV from now on."""
    part, model = kernel.part(Chrdevs), kernel.part(DeviceModel)
    minor = load_u32(kernel, misc)
    if part.misc.get(minor) != misc:
        warn(kernel, "drivers/char/misc.c")
        return
    device = load_u64(kernel, misc + MiscDevice.THIS_DEVICE)
    model.remove(device)
    model.put(device)
    del part.misc[minor]
