"""More memory that goes away with its device (``drivers/base/devres.c``): pages, strings, per-CPU memory, other sizes."""

from __future__ import annotations

from pkvm_emu.kernel.devicetree import devres
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.exports.devres import allocate
from pkvm_emu.kernel.exports.format import va_list
from pkvm_emu.kernel.exports.percpu import alloc_percpu, free_percpu
from pkvm_emu.kernel.guest_access import load, load_string, misuse, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.slab import ZERO_SIZE_PTR, Slab
from pkvm_emu.machine.calling import U32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict


@kernel_part
class ManagedPages(State):
    """Blocks of ``devm_get_free_pages``: the order by kernel address."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.devres_pages")
        self.orders: StateDict[int, int] = StateDict(kernel.machine.journal, "kernel.devres_pages.orders")


@kernel_symbol("devm_get_free_pages", runs_guest=True)
def devm_get_free_pages(kernel: Kernel, device: Ptr, flags: U32, order: U32) -> int:
    """``2**order`` zeroed pages; 0 without."""
    pa = kernel.pages.alloc_pages(order, zero=True)
    if pa is None:
        return 0
    address = kernel.memory.linear_va(pa)
    kernel.part(ManagedPages).orders[address] = order
    release = kernel.symbols.resolve("pkvm_emu_devm_pages_release")
    devres.add(kernel.part(Devices).at(device), "action", release, address)
    return address


@kernel_symbol("pkvm_emu_devm_pages_release", runs_guest=True)
def devm_pages_release(kernel: Kernel, address: Ptr) -> None:
    """What a device does with its pages when it goes."""
    order = kernel.part(ManagedPages).orders.pop(address, None)
    if order is not None:
        kernel.pages.free_pages(kernel.memory.linear_pa(address & -PAGE_SIZE), order)


@kernel_symbol("devm_free_pages", runs_guest=True)
def devm_free_pages(kernel: Kernel, device: Ptr, address: Ptr) -> None:
    """Free pages early; pages that are not the device's are warned about."""
    release = kernel.symbols.resolve("pkvm_emu_devm_pages_release")
    one = devres.remove(kernel.part(Devices).at(device), "action", release, address)
    if one is None:
        warn(kernel, "drivers/base/devres.c")
    else:
        devm_pages_release(kernel, address)


@kernel_symbol("devm_krealloc", runs_guest=True)
def devm_krealloc(kernel: Kernel, device: Ptr, address: Ptr, size: U64, flags: U32) -> int:
    """Give memory of a device another size; NULL (and the old memory stays) without memory.

    Raises:
        ModuleError: it is not memory of the device.
    """
    if not address:
        return allocate(kernel, device, size, flags)
    found = kernel.part(Devices).at(device)
    one = devres.remove(found, "memory", address)
    if one is None:
        raise misuse(kernel, f"devm_krealloc({address:#x}): that is no memory of the device")
    if not size:
        devres.release(kernel, found, one)
        return ZERO_SIZE_PTR
    new = kernel.part(Slab).resize(address, size, flags)
    devres.add(found, "memory", new or address)
    return new or 0


@kernel_symbol("devm_kstrdup_const", runs_guest=True)
def devm_kstrdup_const(kernel: Kernel, device: Ptr, text: Ptr, flags: U32) -> int:
    """A copy of a string; NULL of NULL."""
    if not text:
        return 0
    data = load_string(kernel, text) + b"\0"
    address = allocate(kernel, device, len(data), flags)
    if address:
        store(kernel, address, data)
    return address


@kernel_symbol("devm_kvasprintf", runs_guest=True)
def devm_kvasprintf(kernel: Kernel, device: Ptr, flags: U32, fmt: Ptr, args: Ptr) -> int:
    """A formatted string, with a ``va_list``."""
    data = kernel.format(load_string(kernel, fmt), va_list(kernel, args)).encode("latin-1") + b"\0"
    address = allocate(kernel, device, len(data), flags)
    if address:
        store(kernel, address, data)
    return address


@kernel_symbol("__devm_alloc_percpu", runs_guest=True)
def devm_alloc_percpu(kernel: Kernel, device: Ptr, size: U64, align: U64) -> int:
    """Per-CPU memory for the life of a device; NULL."""
    address = alloc_percpu(kernel, size, align)
    if address:
        devres.add(kernel.part(Devices).at(device), "action", kernel.symbols.resolve("free_percpu"), address)
    return address


@kernel_symbol("devm_free_percpu", runs_guest=True)
def devm_free_percpu(kernel: Kernel, device: Ptr, address: Ptr) -> None:
    """Free it early; what is not the device's is warned about."""
    release = kernel.symbols.resolve("free_percpu")
    if devres.remove(kernel.part(Devices).at(device), "action", release, address) is None:
        warn(kernel, "drivers/base/devres.c")
    else:
        free_percpu(kernel, address)


def _duplicate(kernel: Kernel, source: int, size: int, flags: int) -> int:
    address = kernel.part(Slab).kmalloc(size, flags)
    if address and size:
        store(kernel, address, load(kernel, source, size))
    return address or 0


@kernel_symbol("kmemdup_array", runs_guest=True)
def kmemdup_array(kernel: Kernel, source: Ptr, count: U64, size: U64, flags: U32) -> int:
    """A copy of an array; NULL without memory or where the size overflows."""
    return _duplicate(kernel, source, count * size, flags) if count * size < 1 << 64 else 0


@kernel_symbol("kvmemdup", runs_guest=True)
def kvmemdup(kernel: Kernel, source: Ptr, size: U64, flags: U32) -> int:
    """A copy of memory that ``kvfree`` frees."""
    return _duplicate(kernel, source, size, flags)
