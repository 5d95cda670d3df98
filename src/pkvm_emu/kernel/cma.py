"""Contiguous memory areas (``mm/cma.c``): the default one, and regions of the device tree that a device is given as its own."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: Bytes of a ``struct cma`` here: ``base_pfn``, ``count``, and what nobody but the kernel reads.
_SIZE = 256
_DEFAULT = "reserved"


class Area(NamedTuple):
    """One area: physical start, bytes, and its name."""

    base: int
    size: int
    name: str


@kernel_part
class ContiguousAreas(State):
    """The areas by the address of their ``struct cma``, and the pages of reserved regions that are taken.

    The default area is what the page allocator has: a device's is a part of RAM that movable pages use meanwhile.

    Attributes:
        default: address of the default area's ``struct cma``; 0 until somebody wants it.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.cma")
        self._kernel = kernel
        self.areas: StateDict[int, Area] = StateDict(journal, "kernel.cma.areas")
        #: Blocks of reserved regions: PA and pages.
        self.taken: StateDict[int, int] = StateDict(journal, "kernel.cma.taken")
        self.default = 0

    def default_area(self) -> int:
        """``dma_contiguous_default_area``"""
        if not self.default:
            ram = self._kernel.machine.ram
            self.default = self._make(Area(ram.base, ram.size, _DEFAULT))
        return self.default

    def of_region(self, base: int, size: int, name: str) -> int:
        """The ``struct cma`` of a reusable region of the device tree."""
        area = Area(base, size, name)
        return next((at for at, known in self.areas.items() if known == area), 0) or self._make(area)

    def _make(self, area: Area) -> int:
        kernel = self._kernel
        at = kernel.part(Slab).kmalloc(_SIZE) or 0
        if not at:
            return 0
        words = struct.pack("<QQ", area.base // PAGE_SIZE, area.size // PAGE_SIZE)
        kernel.memory.write(at, words.ljust(_SIZE, b"\0"))
        self.areas[at] = area
        return at

    def take(self, at: int, count: int, align_order: int) -> int | None:
        """First fit of ``count`` pages in a reserved region: their PA, or None without room."""
        area = self.areas[at]
        step = PAGE_SIZE << align_order
        start, size = -(-area.base // step) * step, count * PAGE_SIZE
        for block, pages in sorted(self.taken.items()):
            if area.base <= block < area.base + area.size:
                if start + size <= block:
                    break
                start = -(-max(start, block + pages * PAGE_SIZE) // step) * step
        if start + size > area.base + area.size:
            return None
        self.taken[start] = count
        return start

    def give_back(self, at: int, pa: int, count: int) -> bool:
        """Free pages of a reserved region; whether they are of it."""
        area = self.areas[at]
        if not area.base <= pa < area.base + area.size:
            return False
        end = pa + count * PAGE_SIZE
        for block, pages in sorted(self.taken.items()):
            last = block + pages * PAGE_SIZE
            if block < end and pa < last:
                del self.taken[block]
                if block < pa:
                    self.taken[block] = (pa - block) // PAGE_SIZE
                if end < last:
                    self.taken[end] = (last - end) // PAGE_SIZE
        return True
