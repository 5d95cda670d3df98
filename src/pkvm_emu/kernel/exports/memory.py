"""Memory functions (``lib/string.c``, ``lib/iomem*.c``): memset, memcpy and their kin."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U8, U16, U32, U64, Ptr

PAGE_SIZE = 4096


def _fill(kernel: Kernel, address: int, pattern: bytes, count: int) -> int:
    # In pieces: a wild length has to fault at the first page that is not there, not take the host's memory.
    per_piece = PAGE_SIZE // len(pattern)
    at = address
    while count > 0:
        step = min(count, per_piece)
        store(kernel, at, pattern * step)
        at += step * len(pattern)
        count -= step
    return address


@kernel_symbol("memset", "__memset", "__pi_memset", runs_guest=True)
def memset(kernel: Kernel, s: Ptr, c: U8, count: U64) -> int:
    """Fill ``count`` bytes."""
    return _fill(kernel, s, bytes((c,)), count)


@kernel_symbol("memset16", runs_guest=True)
def memset16(kernel: Kernel, s: Ptr, value: U16, count: U64) -> int:
    """Fill ``count`` 16-bit words."""
    return _fill(kernel, s, value.to_bytes(2, "little"), count)


@kernel_symbol("memset32", runs_guest=True)
def memset32(kernel: Kernel, s: Ptr, value: U32, count: U64) -> int:
    """Fill ``count`` 32-bit words."""
    return _fill(kernel, s, value.to_bytes(4, "little"), count)


@kernel_symbol("memset64", runs_guest=True)
def memset64(kernel: Kernel, s: Ptr, value: U64, count: U64) -> int:
    """Fill ``count`` 64-bit words."""
    return _fill(kernel, s, value.to_bytes(8, "little"), count)


@kernel_symbol("memcpy", "__memcpy", "__pi_memcpy", runs_guest=True)
def memcpy(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """Copy ``count`` bytes; arm64's is memmove, so overlap is no matter."""
    return _move(kernel, dest, src, count)


@kernel_symbol("memmove", "__memmove", "__pi_memmove", runs_guest=True)
def memmove(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """Copy ``count`` bytes that may overlap."""
    return _move(kernel, dest, src, count)


def _move(kernel: Kernel, dest: int, src: int, count: int) -> int:
    pieces = range(0, count, PAGE_SIZE)
    for offset in reversed(pieces) if src < dest else pieces:
        size = min(PAGE_SIZE, count - offset)
        store(kernel, dest + offset, load(kernel, src + offset, size))
    return dest


@kernel_symbol("memcmp", runs_guest=True)
def memcmp(kernel: Kernel, left: Ptr, right: Ptr, count: U64) -> int:
    """Negative, 0 or positive by the first bytes that differ."""
    for offset in range(0, count, PAGE_SIZE):
        size = min(PAGE_SIZE, count - offset)
        first, second = load(kernel, left + offset, size), load(kernel, right + offset, size)
        if first != second:
            return next(a - b for a, b in zip(first, second, strict=True) if a != b)
    return 0


@kernel_symbol("bcmp", runs_guest=True)
def bcmp(kernel: Kernel, left: Ptr, right: Ptr, count: U64) -> int:
    """0 where equal."""
    return memcmp(kernel, left, right, count)


@kernel_symbol("memchr", runs_guest=True)
def memchr(kernel: Kernel, s: Ptr, c: U8, count: U64) -> int:
    """First place of a byte, or NULL."""
    found = memscan(kernel, s, c, count)
    return found if found != s + count else 0


@kernel_symbol("memscan", runs_guest=True)
def memscan(kernel: Kernel, s: Ptr, c: U8, count: U64) -> int:
    """First place of a byte, or the end."""
    for offset in range(0, count, PAGE_SIZE):
        index = load(kernel, s + offset, min(PAGE_SIZE, count - offset)).find(c)
        if index >= 0:
            return s + offset + index
    return s + count


@kernel_symbol("memchr_inv", runs_guest=True)
def memchr_inv(kernel: Kernel, s: Ptr, c: U8, count: U64) -> int:
    """First place of another byte than ``c``, or NULL."""
    for offset in range(0, count, PAGE_SIZE):
        data = load(kernel, s + offset, min(PAGE_SIZE, count - offset))
        kept = len(data.lstrip(bytes((c,))))
        if kept:
            return s + offset + len(data) - kept
    return 0


@kernel_symbol("memcpy_and_pad", runs_guest=True)
def memcpy_and_pad(kernel: Kernel, dest: Ptr, size: U64, src: Ptr, count: U64, pad: U8) -> None:
    """Copy ``count`` bytes and fill up to ``size``."""
    _move(kernel, dest, src, min(size, count))
    if size > count:
        _fill(kernel, dest + count, bytes((pad,)), size - count)


@kernel_symbol("memzero_explicit", runs_guest=True)
def memzero_explicit(kernel: Kernel, s: Ptr, count: U64) -> None:
    """Zero ``count`` bytes."""
    _fill(kernel, s, b"\0", count)


@kernel_symbol("copy_page", runs_guest=True)
def copy_page(kernel: Kernel, to: Ptr, source: Ptr) -> None:
    """Copy a page."""
    _move(kernel, to, source, PAGE_SIZE)


@kernel_symbol("clear_page", runs_guest=True)
def clear_page(kernel: Kernel, to: Ptr) -> None:
    """Zero a page."""
    _fill(kernel, to, b"\0", PAGE_SIZE)
