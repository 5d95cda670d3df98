"""The vmalloc area: ``vmalloc``, ``vmap`` and ``ioremap``. Addresses are not used twice, so a stale one faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.page_allocator import MAX_ORDER, PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


class Area(NamedTuple):
    """One mapping: bytes, ``vmalloc``, ``vmap`` or ``ioremap``, the blocks (PA, order) that it owns, physical start of an
    ``ioremap``, and who made it.
    """

    size: int
    kind: str
    blocks: tuple[tuple[int, int], ...]
    physical: int
    caller: int


@kernel_part
class Vmalloc(State):
    """Mappings in the vmalloc area.

    Args:
        kernel: whose address space and pages are used.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.vmalloc")
        self._kernel = kernel
        self.areas: StateDict[int, Area] = StateDict(kernel.machine.journal, "kernel.vmalloc.areas")

    def allocate(self, size: int, prot: str = "rw") -> int | None:
        """Zeroed memory of ``size`` bytes, rounded up to pages; None for 0 bytes and without memory."""
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        if not size or size > self._kernel.machine.ram.size:
            return None
        blocks: list[tuple[int, int]] = []
        left = size
        while left:
            order = min((left // PAGE_SIZE).bit_length() - 1, MAX_ORDER)
            pa = self._kernel.pages.alloc_pages(order, zero=True)
            if pa is None:
                for block in blocks:
                    self._kernel.pages.free_pages(*block)
                return None
            blocks.append((pa, order))
            left -= PAGE_SIZE << order
        va = self._kernel.memory.reserve_vmalloc_area(size)
        at = va
        for pa, order in blocks:
            self._kernel.memory.map(at, pa, PAGE_SIZE << order, prot)
            at += PAGE_SIZE << order
        self._remember(va, size, "vmalloc", tuple(blocks))
        return va

    def map_pages(self, pages: Sequence[int], prot: str = "rw") -> int:
        """Map physical pages side by side."""
        va = self._kernel.memory.reserve_vmalloc_area(len(pages) * PAGE_SIZE)
        for index, pa in enumerate(pages):
            self._kernel.memory.map(va + index * PAGE_SIZE, pa, PAGE_SIZE, prot)
        self._remember(va, len(pages) * PAGE_SIZE, "vmap", ())
        return va

    def map_physical(self, pa: int, size: int, prot: str) -> int:
        """Map a physical range of any alignment; the address of its first byte, or 0 (and a warning) where it does not fit."""
        first = pa & -PAGE_SIZE
        length = -(-(pa + size - first) // PAGE_SIZE) * PAGE_SIZE
        if not self._kernel.memory.has_vmalloc_room(length):
            self._kernel.log.write(
                f"vmap allocation for size {length} failed: use vmalloc=<size> to increase size", level=4
            )
            return 0
        va = self._kernel.memory.reserve_vmalloc_area(length)
        self._kernel.memory.map(va, first, length, prot)
        self._remember(va, length, "ioremap", (), first)
        return va + pa - first

    def release(self, va: int) -> bool:
        """Remove the mapping that starts at ``va`` and free its own memory; False where there is none."""
        area = self.areas.get(va)
        if area is None:
            return False
        self._kernel.memory.unmap(va, area.size)
        for block in area.blocks:
            self._kernel.pages.free_pages(*block)
        del self.areas[va]
        return True

    def contains(self, va: int) -> bool:
        """Whether an address lies in the vmalloc area (``is_vmalloc_addr``)."""
        area = self._kernel.memory.layout
        return area.vmalloc_start <= va < area.vmalloc_end

    def _remember(self, va: int, size: int, kind: str, blocks: tuple[tuple[int, int], ...], physical: int = 0) -> None:
        self.areas[va] = Area(size, kind, blocks, physical, self._kernel.machine.engine.read("x30"))
