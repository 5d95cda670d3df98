"""Managed resources of devices: ``devm_*`` (``drivers/base/devres.c``, ``lib/devres.c``, ``kernel/irq/devres.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.devicetree import devres, layouts
from pkvm_emu.kernel.devicetree.devices import Device, Devices
from pkvm_emu.kernel.devicetree.irq import Action, Interrupts
from pkvm_emu.kernel.exports.device_log import device_log, report
from pkvm_emu.kernel.exports.vmalloc import ioremap, ioremap_wc
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import ZERO_SIZE_PTR, Slab
from pkvm_emu.machine.calling import S32, U32, U64, CStr, Ptr, VarArgs

EINVAL, EBUSY, ENOMEM, ENOENT = 22, 16, 12, 2
_PLACE = "drivers/base/devres.c"
#: Before it the messages of devm_ioremap_resource do not name the error.
_NAMES_ERRORS = (6, 12)
_RESOURCE_BUSY = 0x8000_0000
_RESOURCE_TYPES = 0x1F00


def _device(kernel: Kernel, address: int) -> Device:
    return kernel.part(Devices).at(address)


# Memory


def allocate(kernel: Kernel, device: int, size: int, flags: int) -> int:
    """Memory that goes away with a device; NULL without memory, 0x10 for 0 bytes."""
    if not size:
        return ZERO_SIZE_PTR
    found = _device(kernel, device)
    address = kernel.part(Slab).kmalloc(size, flags)
    if address:
        devres.add(found, "memory", address)
    return address or 0


@kernel_symbol("devm_kmalloc", "devm_kmalloc_noprof", runs_guest=True)
def devm_kmalloc(kernel: Kernel, device: Ptr, size: U64, flags: U32) -> int:
    """``kmalloc`` for the life of a device."""
    return allocate(kernel, device, size, flags)


@kernel_symbol("devm_kfree", runs_guest=True)
def devm_kfree(kernel: Kernel, device: Ptr, address: Ptr) -> None:
    """Free early; memory that is not the device's is warned about."""
    if address in (0, ZERO_SIZE_PTR):
        return
    found = _device(kernel, device)
    one = devres.remove(found, "memory", address)
    if one is None:
        warn(kernel, _PLACE)
    else:
        devres.release(kernel, found, one)


def _copy(kernel: Kernel, device: int, data: bytes, flags: int) -> int:
    address = allocate(kernel, device, len(data), flags)
    if address and address != ZERO_SIZE_PTR:
        kernel.memory.write(address, data)
    return address


@kernel_symbol("devm_kmemdup", "devm_kmemdup_noprof", runs_guest=True)
def devm_kmemdup(kernel: Kernel, device: Ptr, source: Ptr, size: U64, flags: U32) -> int:
    """A copy of memory."""
    return _copy(kernel, device, kernel.memory.read(source, size), flags)


@kernel_symbol("devm_kstrdup", "devm_kstrdup_noprof", runs_guest=True)
def devm_kstrdup(kernel: Kernel, device: Ptr, text: Ptr, flags: U32) -> int:
    """A copy of a string; NULL of NULL."""
    return _copy(kernel, device, kernel.read_cstr(text) + b"\0", flags) if text else 0


@kernel_symbol("devm_kasprintf", runs_guest=True)
def devm_kasprintf(kernel: Kernel, device: Ptr, flags: U32, fmt: CStr, args: VarArgs) -> int:
    """A formatted string."""
    return _copy(kernel, device, kernel.format(fmt or "", args).encode("latin-1") + b"\0", flags)


# Mappings


@kernel_symbol("devm_ioremap", "devm_ioremap_uc", runs_guest=True)
def devm_ioremap(kernel: Kernel, device: Ptr, start: U64, size: U64) -> int:
    """Map device memory; NULL."""
    address = ioremap(kernel, start, size)
    if address:
        devres.add(_device(kernel, device), "mapping", address)
    return address


@kernel_symbol("devm_ioremap_wc", runs_guest=True)
def devm_ioremap_wc(kernel: Kernel, device: Ptr, start: U64, size: U64) -> int:
    """The same, normal non-cacheable."""
    address = ioremap_wc(kernel, start, size)
    if address:
        devres.add(_device(kernel, device), "mapping", address)
    return address


@kernel_symbol("devm_iounmap", runs_guest=True)
def devm_iounmap(kernel: Kernel, device: Ptr, address: Ptr) -> None:
    """Remove a mapping early."""
    found = _device(kernel, device)
    one = devres.remove(found, "mapping", address)
    if one is None:
        warn(kernel, "lib/devres.c")
    else:
        devres.release(kernel, found, one)


@kernel_symbol("devm_ioremap_resource", runs_guest=True)
def devm_ioremap_resource(kernel: Kernel, device: Ptr, resource: Ptr) -> int:
    """Request and map a memory resource; ERR_PTR(-EINVAL), (-EBUSY) where another device has the range, (-ENOMEM)."""
    return map_resource(kernel, device, resource)


def map_resource(kernel: Kernel, device: int, resource: int) -> int:
    """``devm_ioremap_resource``"""
    memory, found = kernel.memory, _device(kernel, device)
    flags = memory.read_u64(resource + layouts.RESOURCE_FLAGS) if resource else 0
    if flags & _RESOURCE_TYPES != layouts.IORESOURCE_MEM:
        return _refuse(kernel, device, -EINVAL, "invalid resource", resource)
    start, end = memory.read_u64(resource), memory.read_u64(resource + layouts.RESOURCE_END)
    regions = kernel.part(Devices).regions
    if any(low <= end and start <= high for low, (high, _) in regions.items()):
        return _refuse(kernel, device, -EBUSY, "can't request region for resource", resource)
    address = ioremap(kernel, start, end - start + 1)
    if not address:
        return _refuse(kernel, device, -ENOMEM, "ioremap failed for resource", resource)
    regions[start] = (end, found.name)
    devres.add(found, "region", start)
    devres.add(found, "mapping", address)
    return address


@kernel_symbol("__devm_request_region")
def devm_request_region(kernel: Kernel, device: Ptr, parent: Ptr, start: U64, size: U64, name: CStr) -> int:
    """Request a range of addresses for as long as the driver is bound: ``struct resource``; NULL where somebody has it."""
    end, devices = start + size - 1, kernel.part(Devices)
    if any(low <= end and start <= high for low, (high, _) in devices.regions.items()):
        return 0
    found = _device(kernel, device)
    text = devices.string(name or "")
    resource = devices.allocate(found.layout.resource_size)
    for index, value in enumerate((start, end, text, layouts.IORESOURCE_MEM | _RESOURCE_BUSY)):
        kernel.memory.write_u64(resource + 8 * index, value)
    devices.regions[start] = (end, found.name)
    devres.add(found, "region", start)
    return resource


@kernel_symbol("__devm_release_region", runs_guest=True)
def devm_release_region(kernel: Kernel, device: Ptr, parent: Ptr, start: U64, size: U64) -> None:
    """Give a range back early."""
    found = _device(kernel, device)
    one = devres.remove(found, "region", start)
    if one is None:
        warn(kernel, "lib/devres.c")
    else:
        devres.release(kernel, found, one)


def _refuse(kernel: Kernel, device: int, error: int, text: str, resource: int) -> int:
    said = "(null)"
    if resource:
        start, end = kernel.memory.read_u64(resource), kernel.memory.read_u64(resource + layouts.RESOURCE_END)
        is_memory = kernel.memory.read_u64(resource + layouts.RESOURCE_FLAGS) & layouts.IORESOURCE_MEM
        said = f"[mem {start:#010x}-{end:#010x}]" if is_memory else f"[irq {start}]"
    if kernel.generation.kernel >= _NAMES_ERRORS:
        report(kernel, device, error, f"{text} {said}\n")
    else:
        device_log(kernel, device, 3, f"{text} {said}\n")
    return error


# Actions and resources of the driver's own


@kernel_symbol("devm_add_action", "__devm_add_action")
def devm_add_action(kernel: Kernel, device: Ptr, action: Ptr, data: Ptr) -> int:
    """Call a function when the device goes. (``devm_add_action_or_reset`` is inline and calls it at once on an error.)"""
    devres.add(_device(kernel, device), "action", action, data)
    return 0


@kernel_symbol("devm_remove_action", "devm_remove_action_nowarn")
def devm_remove_action(kernel: Kernel, device: Ptr, action: Ptr, data: Ptr) -> int:
    """Take an action back without calling it; -ENOENT."""
    return 0 if devres.remove(_device(kernel, device), "action", action, data) is not None else -ENOENT


@kernel_symbol("devm_release_action", runs_guest=True)
def devm_release_action(kernel: Kernel, device: Ptr, action: Ptr, data: Ptr) -> None:
    """Call an action now and forget it."""
    found = _device(kernel, device)
    one = devres.remove(found, "action", action, data)
    if one is None:
        warn(kernel, _PLACE)
    else:
        devres.release(kernel, found, one)


@kernel_symbol("__devres_alloc_node", runs_guest=True)
def devres_alloc(kernel: Kernel, release: Ptr, size: U64, flags: U32, node: S32, name: Ptr) -> int:
    """Memory for a resource of the driver's own, not tied to a device yet."""
    address = kernel.part(Slab).kmalloc(size, flags | line_facts(kernel.generation.kernel).gfp_zero) or 0
    if address:
        kernel.part(Devices).releases[address] = release
    return address


@kernel_symbol("devres_add")
def devres_add(kernel: Kernel, device: Ptr, resource: Ptr) -> None:
    """Tie a resource to a device: its release function is called when the device goes."""
    devres.add(_device(kernel, device), "resource", resource, kernel.part(Devices).releases.pop(resource, 0))


@kernel_symbol("devres_free", runs_guest=True)
def devres_free(kernel: Kernel, resource: Ptr) -> None:
    """Free a resource that was not tied to a device."""
    if resource:
        kernel.part(Devices).releases.pop(resource, None)
        kernel.part(Slab).kfree(resource, "devres_free")


# Interrupts


@kernel_symbol("devm_request_threaded_irq")
def devm_request_threaded_irq(
    kernel: Kernel, device: Ptr, number: U32, handler: Ptr, thread: Ptr, flags: U64, name: CStr, cookie: Ptr
) -> int:
    """Install an interrupt handler for the life of a device; without a name it gets the device's."""
    found = _device(kernel, device)
    result = kernel.part(Interrupts).request(number, Action(handler, thread, cookie, flags, name or found.name))
    if not result:
        devres.add(found, "irq", number, cookie)
    return result


@kernel_symbol("devm_free_irq")
def devm_free_irq(kernel: Kernel, device: Ptr, number: U32, cookie: Ptr) -> None:
    """Remove a handler early."""
    found = _device(kernel, device)
    one = devres.remove(found, "irq", number, cookie)
    if one is None:
        warn(kernel, "kernel/irq/devres.c")
    else:
        devres.release(kernel, found, one)
