"""Memory that the driver core and the device tree take for good: small objects side by side in pages of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import EmulatorError
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_CHUNK_ORDER = 4


class Arena(State):
    """Zeroed memory that is never given back.

    Args:
        kernel: whose pages.
        name: the root of the state.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        super().__init__(kernel.machine.journal, name)
        self._kernel = kernel
        self.next = 0
        self.end = 0

    def allocate(self, size: int, align: int = 8) -> int:
        """Kernel VA of ``size`` zero bytes."""
        start = (self.next + align - 1) & -align
        if not self.next or start + size > self.end:
            order = max(_CHUNK_ORDER, ((size - 1) // PAGE_SIZE).bit_length())
            pa = self._kernel.pages.alloc_pages(order, zero=True)
            if pa is None:
                raise EmulatorError(f"no memory for {size:#x} bytes of the device tree: give the machine more RAM")
            start = self._kernel.memory.linear_va(pa)
            self.end = start + (PAGE_SIZE << order)
        self.next = start + size
        return start

    def place(self, data: bytes) -> int:
        """A copy of ``data``."""
        address = self.allocate(max(len(data), 1))
        self._kernel.memory.write(address, data)
        return address

    def string(self, text: str) -> int:
        """A NUL-terminated copy of ``text``."""
        return self.place(text.encode("utf-8", "surrogateescape") + b"\0")
