"""Copies of strings and memory in new slab objects (``mm/util.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load, load_string, load_u64
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import U32, U64, Ptr


def _copy(kernel: Kernel, data: bytes, flags: int) -> int:
    address = kernel.part(Slab).kmalloc(len(data), flags)
    if address is None:
        return 0
    kernel.memory.write(address, data)
    return address


@kernel_symbol("kstrdup", "kstrdup_noprof", runs_guest=True)
def kstrdup(kernel: Kernel, s: Ptr, flags: U32) -> int:
    """A copy in new memory; NULL for NULL and without memory."""
    return _copy(kernel, load_string(kernel, s) + b"\0", flags) if s else 0


@kernel_symbol("kstrdup_const", runs_guest=True)
def kstrdup_const(kernel: Kernel, s: Ptr, flags: U32) -> int:
    """A copy: strings of modules are not in the kernel's read-only data."""
    return kstrdup(kernel, s, flags)


@kernel_symbol("kfree_const", runs_guest=True)
def kfree_const(kernel: Kernel, s: Ptr) -> None:
    """Free what ``kstrdup_const`` made."""
    kernel.part(Slab).kfree(s, "kfree_const")


@kernel_symbol("kstrndup", "kstrndup_noprof", runs_guest=True)
def kstrndup(kernel: Kernel, s: Ptr, count: U64, flags: U32) -> int:
    """A copy of ``count`` bytes at most, with a NUL."""
    return _copy(kernel, load_string(kernel, s, count) + b"\0", flags) if s else 0


@kernel_symbol("kmemdup", "kmemdup_noprof", runs_guest=True)
def kmemdup(kernel: Kernel, source: Ptr, size: U64, flags: U32) -> int:
    """A copy of ``size`` bytes."""
    address = kernel.part(Slab).kmalloc(size, flags)
    if address is None:
        return 0
    if size:
        kernel.memory.write(address, load(kernel, source, size))
    return address


@kernel_symbol("kmemdup_nul", runs_guest=True)
def kmemdup_nul(kernel: Kernel, source: Ptr, size: U64, flags: U32) -> int:
    """A copy of ``size`` bytes and a NUL."""
    return _copy(kernel, load(kernel, source, size) + b"\0", flags) if source else 0


@kernel_symbol("kfree_strarray", runs_guest=True)
def kfree_strarray(kernel: Kernel, array: Ptr, count: U64) -> None:
    """Free an array of ``count`` strings, and the array."""
    if array:
        slab = kernel.part(Slab)
        for index in range(count):
            slab.kfree(load_u64(kernel, array + 8 * index), "kfree_strarray")
        slab.kfree(array, "kfree_strarray")
