"""The memory of the process that uses files: buffers of system calls, and mappings.

Drivers copy from and to user addresses. The process is Python, so a buffer is put into pages of EL0 for the length of one call. It
ends where its last page ends (rounded to 8 bytes): a driver that copies more than was given gets -EFAULT instead of luck.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import ENOMEM
from pkvm_emu.kernel.fs.node import FsError
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_BUFFERS, _MAPPINGS = 0x20_0000_0000, 0x30_0000_0000
_ALIGN = 8
#: A system call moves at most so much at once here; more is a short read or write, as drivers have to expect.
LARGEST_TRANSFER = 16 << 20


@kernel_part
class UserMemory(State):
    """User addresses.

    Attributes:
        next_buffer: where the next buffer's pages go; calls nest.
        next_mapping: where the next mapping goes; addresses are not used again.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.user_memory")
        self._kernel = kernel
        self.next_buffer = _BUFFERS
        self.next_mapping = _MAPPINGS

    @contextmanager
    def buffer(self, size: int, data: bytes | bytearray = b"") -> Iterator[int]:
        """User address of ``size`` bytes that begin with ``data``, for the length of a ``with`` block.

        Raises:
            FsError: ENOMEM.
        """
        memory, allocator = self._kernel.memory, self._kernel.pages
        room = -(-size // _ALIGN) * _ALIGN
        start = self.next_buffer
        count = max(-(-room // PAGE_SIZE), 1)
        pages: list[int] = []
        # The page behind stays free, so that a copy beyond the end faults.
        self.next_buffer = start + (count + 1) * PAGE_SIZE
        try:
            for index in range(count):
                pa = allocator.alloc_pages(0, zero=True)
                if pa is None:
                    raise FsError(ENOMEM)
                pages.append(pa)
                memory.map_user(start + index * PAGE_SIZE, pa, PAGE_SIZE, "rw")
            address = start + count * PAGE_SIZE - room
            if data:
                memory.write(address, data)
            yield address
        finally:
            if pages:
                memory.unmap_user(start, len(pages) * PAGE_SIZE)
            for pa in pages:
                allocator.free_pages(pa, 0)
            self.next_buffer = start

    def reserve(self, size: int) -> int:
        """User addresses for a mapping of ``size`` bytes, with a hole behind."""
        start = self.next_mapping
        self.next_mapping = start + size + PAGE_SIZE
        return start
