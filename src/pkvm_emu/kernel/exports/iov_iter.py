"""Copies through a ``struct iov_iter`` over one user buffer (``lib/iov_iter.c``): what ``read_iter`` and ``write_iter`` get."""

from __future__ import annotations

from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.exports.uaccess import copy_from_user, copy_to_user_bytes
from pkvm_emu.kernel.guest_access import load, load_u64, misuse, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U64, Ptr


def _address(kernel: Kernel, iterator: int) -> int:
    """The user address that comes next.

    Raises:
        ModuleError: the iterator is over something else than one user buffer.
    """
    rows = file_structs(kernel.generation.kernel).iter
    if load(kernel, iterator, 1)[0] != rows.kind:
        raise misuse(kernel, f"iov_iter {iterator:#x}: only iterators over one user buffer can be copied through")
    base = load_u64(kernel, iterator + rows.base)
    if rows.by_vector:
        base = load_u64(kernel, base)
    return base + load_u64(kernel, iterator + rows.iov_offset)


def _advance(kernel: Kernel, iterator: int, done: int) -> None:
    rows = file_structs(kernel.generation.kernel).iter
    for offset, step in ((rows.iov_offset, done), (rows.count, -done)):
        store_uint(kernel, iterator + offset, load_u64(kernel, iterator + offset) + step, 8)


def _room(kernel: Kernel, iterator: int) -> int:
    return load_u64(kernel, iterator + file_structs(kernel.generation.kernel).iter.count)


def copy_out(kernel: Kernel, iterator: int, data: bytes) -> int:
    """Give ``data`` to user space; the bytes that were copied."""
    data = data[: _room(kernel, iterator)]
    done = len(data) - copy_to_user_bytes(kernel, _address(kernel, iterator), data)
    _advance(kernel, iterator, done)
    return done


@kernel_symbol("_copy_to_iter", runs_guest=True)
def copy_to_iter(kernel: Kernel, source: Ptr, size: U64, iterator: Ptr) -> int:
    """Copy to user space; the bytes that were copied."""
    return copy_out(kernel, iterator, load(kernel, source, min(size, _room(kernel, iterator))))


@kernel_symbol("_copy_from_iter", "_copy_from_iter_nocache", runs_guest=True)
def copy_from_iter(kernel: Kernel, dest: Ptr, size: U64, iterator: Ptr) -> int:
    """Copy from user space; the bytes that were copied."""
    size = min(size, _room(kernel, iterator))
    done = size - copy_from_user(kernel, dest, _address(kernel, iterator), size)
    _advance(kernel, iterator, done)
    return done


@kernel_symbol("iov_iter_advance", runs_guest=True)
def iov_iter_advance(kernel: Kernel, iterator: Ptr, size: U64) -> None:
    """Skip bytes."""
    _advance(kernel, iterator, min(size, _room(kernel, iterator)))


@kernel_symbol("iov_iter_revert", runs_guest=True)
def iov_iter_revert(kernel: Kernel, iterator: Ptr, size: U64) -> None:
    """Go back."""
    _advance(kernel, iterator, -size)


@kernel_symbol("iov_iter_zero", runs_guest=True)
def iov_iter_zero(kernel: Kernel, size: U64, iterator: Ptr) -> int:
    """Give zeros to user space; the bytes."""
    return copy_out(kernel, iterator, bytes(min(size, _room(kernel, iterator))))
