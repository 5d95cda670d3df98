"""Device memory by the byte and the MMIO trace hooks (``arch/arm64/kernel/io.c``, ``lib/trace_readwrite.c``)."""

from __future__ import annotations

import struct
from typing import Any

from pkvm_emu.kernel.guest_access import HostFault, load, require_mapped, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import U8, U64, Ptr

_TRACEPOINT_SIZE = 128


def device_load(kernel: Kernel, va: int, size: int) -> int:
    """A load of 1, 2, 4 or 8 bytes as the host's CPU makes it.

    Raises:
        HostFault: it faults.
    """
    value, fault = kernel.access(f"host_load{8 * size}", va)
    if fault is not None:
        raise HostFault(va, size, fault[0])
    return value


def device_store(kernel: Kernel, va: int, value: int, size: int) -> None:
    """A store of 1, 2, 4 or 8 bytes as the host's CPU makes it.

    Raises:
        HostFault: it faults.
    """
    _, fault = kernel.access(f"host_store{8 * size}", va, value)
    if fault is not None:
        raise HostFault(va, size, fault[0])


def _steps(address: int, count: int) -> Any:
    """The accesses of a copy: bytes up to alignment, doublewords, bytes."""
    end = address + count
    while address < end:
        size = 8 if not address % 8 and end - address >= 8 else 1
        yield address, size
        address += size


@kernel_symbol("__memcpy_fromio", "memcpy_fromio", runs_guest=True)
def memcpy_fromio(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> None:
    """Copy from device memory."""
    require_mapped(kernel, src, count)
    for at, size in _steps(src, count):
        store(kernel, dest + at - src, device_load(kernel, at, size).to_bytes(size, "little"))


@kernel_symbol("__memcpy_toio", "memcpy_toio", runs_guest=True)
def memcpy_toio(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> None:
    """Copy to device memory."""
    require_mapped(kernel, dest, count)
    for at, size in _steps(dest, count):
        device_store(kernel, at, int.from_bytes(load(kernel, src + at - dest, size), "little"), size)


@kernel_symbol("__memset_io", "memset_io", runs_guest=True)
def memset_io(kernel: Kernel, dest: Ptr, value: U8, count: U64) -> None:
    """Fill device memory."""
    require_mapped(kernel, dest, count)
    for at, size in _steps(dest, count):
        device_store(kernel, at, int.from_bytes(bytes((value,)) * size, "little"), size)


@kernel_symbol("__iowrite32_copy", runs_guest=True)
def iowrite32_copy(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> None:
    """Copy ``count`` 32-bit words to device memory."""
    require_mapped(kernel, dest, 4 * count)
    for offset in range(0, 4 * count, 4):
        device_store(kernel, dest + offset, int.from_bytes(load(kernel, src + offset, 4), "little"), 4)


@kernel_symbol("__iowrite64_copy", runs_guest=True)
def iowrite64_copy(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> None:
    """Copy ``count`` 64-bit words to device memory."""
    require_mapped(kernel, dest, 8 * count)
    for offset in range(0, 8 * count, 8):
        device_store(kernel, dest + offset, int.from_bytes(load(kernel, src + offset, 8), "little"), 8)


# The hooks of readl() and writel() run only while their tracepoint is on, which it is not; called, they trace nothing.


@kernel_symbol("log_read_mmio", "log_write_mmio", "log_post_read_mmio", "log_post_write_mmio")
def log_mmio(kernel: Kernel) -> None:
    """A trace record of an MMIO access; no event of the host is on, so none is made."""


def _tracepoint(kernel: Kernel) -> bytes:
    """A ``struct tracepoint`` that is off: a name and a static key that counts 0."""
    return struct.pack("<QQ", 0, 0)


for _name in ("rwmmio_read", "rwmmio_write", "rwmmio_post_read", "rwmmio_post_write"):
    kernel_variable(f"__tracepoint_{_name}", _TRACEPOINT_SIZE)(_tracepoint)
