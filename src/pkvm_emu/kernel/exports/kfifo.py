"""Byte and record queues (``lib/kfifo.c``): ``struct __kfifo`` {in, out @4, mask @8, esize @12, data @16}, used inline too."""

from __future__ import annotations

import struct
from errno import EFAULT, EINVAL, ENOMEM

from pkvm_emu.kernel.exports.uaccess import copy_to_user_bytes, user_bytes
from pkvm_emu.kernel.guest_access import load, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import U32, U64, Ptr

_IN, _OUT = 0, 4
_M32 = 0xFFFF_FFFF


class _Fifo:
    """One queue; indices run on and are masked when used."""

    def __init__(self, kernel: Kernel, address: int) -> None:
        self._kernel = kernel
        self._address = address
        fields: tuple[int, ...] = struct.unpack("<IIIIQ", load(kernel, address, 24))
        self.inserted, self.removed, self.mask, self.element, self.data = fields

    @property
    def used(self) -> int:
        return (self.inserted - self.removed) & _M32

    @property
    def room(self) -> int:
        return self.mask + 1 - self.used

    def put(self, data: bytes) -> None:
        count = len(data) // self.element if self.element else 0
        at = (self.inserted & self.mask) * self.element
        first = min(len(data), (self.mask + 1) * self.element - at)
        store(self._kernel, self.data + at, data[:first])
        store(self._kernel, self.data, data[first:])
        store_uint(self._kernel, self._address + _IN, self.inserted + count, 4)

    def peek(self, count: int) -> bytes:
        at, size = (self.removed & self.mask) * self.element, count * self.element
        first = min(size, (self.mask + 1) * self.element - at)
        return load(self._kernel, self.data + at, first) + load(self._kernel, self.data, size - first)

    def drop(self, count: int) -> None:
        store_uint(self._kernel, self._address + _OUT, self.removed + count, 4)


def _make_ready(kernel: Kernel, fifo: int, data: int, elements: int, element: int) -> None:
    store(kernel, fifo, struct.pack("<IIIIQ", 0, 0, elements - 1 if elements else 0, element & _M32, data))


@kernel_symbol("__kfifo_alloc", runs_guest=True)
def kfifo_alloc(kernel: Kernel, fifo: Ptr, size: U32, element: U64, flags: U32) -> int:
    """Memory for ``size`` elements (rounded up to a power of two); 0, -EINVAL below 2, -ENOMEM."""
    size = 1 << (size - 1).bit_length() if size else 0
    if size < 2:
        _make_ready(kernel, fifo, 0, 0, element)
        return -EINVAL
    data = kernel.part(Slab).kmalloc(size * element, flags)
    _make_ready(kernel, fifo, data or 0, size if data else 0, element)
    return 0 if data else -ENOMEM


@kernel_symbol("__kfifo_init", runs_guest=True)
def kfifo_init(kernel: Kernel, fifo: Ptr, buffer: Ptr, size: U32, element: U64) -> int:
    """A queue in a given buffer (rounded down to a power of two); 0 or -EINVAL."""
    count = size // element if element else 0
    count = 1 << count.bit_length() - 1 if count else 0
    _make_ready(kernel, fifo, buffer, count, element)
    return -EINVAL if count < 2 else 0


@kernel_symbol("__kfifo_free", runs_guest=True)
def kfifo_free(kernel: Kernel, fifo: Ptr) -> None:
    """Free its memory."""
    kernel.part(Slab).kfree(_Fifo(kernel, fifo).data, "kfifo_free")
    _make_ready(kernel, fifo, 0, 0, 0)


@kernel_symbol("__kfifo_in", runs_guest=True)
def kfifo_in(kernel: Kernel, fifo: Ptr, buffer: Ptr, count: U32) -> int:
    """Put elements in; how many there was room for."""
    queue = _Fifo(kernel, fifo)
    count = min(count, queue.room)
    queue.put(load(kernel, buffer, count * queue.element))
    return count


@kernel_symbol("__kfifo_out_peek", runs_guest=True)
def kfifo_out_peek(kernel: Kernel, fifo: Ptr, buffer: Ptr, count: U32) -> int:
    """Look at elements; how many there were."""
    queue = _Fifo(kernel, fifo)
    count = min(count, queue.used)
    store(kernel, buffer, queue.peek(count))
    return count


@kernel_symbol("__kfifo_out", runs_guest=True)
def kfifo_out(kernel: Kernel, fifo: Ptr, buffer: Ptr, count: U32) -> int:
    """Take elements out; how many there were."""
    count = kfifo_out_peek(kernel, fifo, buffer, count)
    _Fifo(kernel, fifo).drop(count)
    return count


@kernel_symbol("__kfifo_from_user", runs_guest=True)
def kfifo_from_user(kernel: Kernel, fifo: Ptr, source: Ptr, size: U64, copied: Ptr) -> int:
    """Put in what user space gives; 0 or -EFAULT, and the bytes in ``*copied``."""
    queue = _Fifo(kernel, fifo)
    count = min(size // (queue.element or 1), queue.room)
    data = user_bytes(kernel, source, count * queue.element)
    if data is None:
        store_uint(kernel, copied, 0, 4)
        return -EFAULT
    queue.put(data)
    store_uint(kernel, copied, len(data), 4)
    return 0


@kernel_symbol("__kfifo_to_user", runs_guest=True)
def kfifo_to_user(kernel: Kernel, fifo: Ptr, dest: Ptr, size: U64, copied: Ptr) -> int:
    """Give user space what is in it; 0 or -EFAULT, and the bytes in ``*copied``."""
    queue = _Fifo(kernel, fifo)
    data = queue.peek(min(size // (queue.element or 1), queue.used))
    if copy_to_user_bytes(kernel, dest, data):
        store_uint(kernel, copied, 0, 4)
        return -EFAULT
    queue.drop(len(data) // (queue.element or 1))
    store_uint(kernel, copied, len(data), 4)
    return 0
