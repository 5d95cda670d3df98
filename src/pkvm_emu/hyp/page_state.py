"""Per-page bookkeeping of the hypervisor: memory regions, page states and the hyp vmemmap in guest memory.

The vmemmap is an array of 8-byte ``struct hyp_page`` (u16 refcount, u8 order, u8 host_state, u32
host_share_guest_count), indexed by page frame number; only the parts that describe RAM are backed. Sources:
arch/arm64/kvm/hyp/include/nvhe/memory.h, hyp/nvhe/mm.c (hyp_back_vmemmap).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PhysMem

U64_MAX = (1 << 64) - 1

# Page states: two bits that also live in software bits of descriptors, and marks that do not.
OWNED = 0
SHARED_OWNED = 1
SHARED_BORROWED = 2
MMIO_DMA = 3
MODULE_OWNED = 1 << 2
NOPAGE = 1 << 3
RESTRICTED_PROT = 1 << 4

_STATE_NAMES = ("OWNED", "SHARED_OWNED", "SHARED_BORROWED", "MMIO_DMA")
_MARK_NAMES = ((NOPAGE, "NOPAGE"), (MODULE_OWNED, "MODULE_OWNED"), (RESTRICTED_PROT, "RESTRICTED_PROT"))

HYP_PAGE_SIZE = 8
REFCOUNT_MAX = 0x7FFF


class Component(IntEnum):
    """Owners of a page, as stored in bits 9:2 of an invalid host stage-2 entry."""

    HOST = 0
    HYP = 1
    FFA = 2
    GUEST = 3
    PROTECTED = 4


def state_name(state: int) -> str:
    """``SHARED_OWNED``, ``NOPAGE``, ``NOPAGE|MODULE_OWNED``: a page state by name."""
    marks = [name for bit, name in _MARK_NAMES if state & bit]
    if not marks or state & 3:
        marks.insert(0, _STATE_NAMES[state & 3])
    return "|".join(marks)


class Region(NamedTuple):
    """A memblock region: ``size`` bytes of RAM from ``base``; a ``nomap`` one may not change hands."""

    base: int
    size: int
    nomap: bool = False

    @property
    def end(self) -> int:
        return self.base + self.size


class MemRange(NamedTuple):
    """The memblock or the gap between memblocks that holds an address; ``region`` is None for a gap (MMIO)."""

    region: Region | None
    start: int
    end: int


class MemoryMap:
    """RAM as the hypervisor knows it: sorted, disjoint, page-aligned regions; everything else is MMIO."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self.regions = tuple(sorted(regions))
        end = 0
        for region in self.regions:
            if (region.base | region.size) & PAGE_MASK or region.size <= 0 or region.base < end:
                raise ValueError(f"memory regions must be page aligned, not empty and disjoint: {region}")
            end = region.end
        bounds = [0]
        ranges: list[MemRange] = []
        for region in self.regions:
            if region.base > bounds[-1]:
                ranges.append(MemRange(None, bounds[-1], region.base))
                bounds.append(region.base)
            ranges.append(MemRange(region, region.base, region.end))
            bounds.append(region.end)
        ranges.append(MemRange(None, bounds[-1], U64_MAX))
        self._bounds, self.ranges = bounds, tuple(ranges)

    def find(self, address: int) -> MemRange:
        """The region or gap around ``address``; the last gap ends at 2**64-1."""
        return self.ranges[bisect_right(self._bounds, address) - 1]

    def is_memory(self, address: int) -> bool:
        return self.find(address).region is not None

    def range_is_memory(self, start: int, end: int) -> bool:
        """Whether ``[start, end)`` lies in one region; the arithmetic wraps at 64 bits as the hypervisor's does."""
        found = self.find(start)
        return found.region is not None and found.start <= (end - 1) & U64_MAX < found.end


class HypVmemmap:
    """The vmemmap: reference counts and host states of all RAM pages.

    Args:
        mem: guest physical memory.
        memory: the RAM regions.
        backing: PA of the zeroed pages that hold the array, :meth:`pages_needed` of them.

    Asking for a page outside RAM raises :class:`HypBug`: that part of the array is not mapped at EL2.
    """

    def __init__(self, mem: PhysMem, memory: MemoryMap, backing: int) -> None:
        self.mem = mem
        self.memory = memory
        self.backing = backing
        self._parts = [(r.base, r.end, backing + offset) for r, offset in _layout(memory)]

    @staticmethod
    def pages_needed(memory: MemoryMap) -> int:
        """Pages of backing for the array over all regions."""
        return sum(size for _, size in _chunks(memory)) // PAGE_SIZE

    def mappings(self, vmemmap_va: int) -> Iterator[tuple[int, int, int]]:
        """``(EL2 VA, PA, bytes)`` of each backed stretch when entry 0 is at ``vmemmap_va``."""
        pa = self.backing
        for offset, size in _chunks(self.memory):
            yield vmemmap_va + offset, pa, size
            pa += size

    def entry(self, pa: int) -> int:
        """PA of the ``struct hyp_page`` of the page at ``pa``."""
        for base, end, entries in self._parts:
            if base <= pa < end:
                return entries + (pa - base >> PAGE_SHIFT) * HYP_PAGE_SIZE
        raise HypBug(f"the page at {pa:#x} has no struct hyp_page: it is not RAM, and EL2 faults on its vmemmap entry")

    def refcount(self, pa: int) -> int:
        return self.mem.read_u64(self.entry(pa)) & 0xFFFF

    def host_state(self, pa: int) -> int:
        return self.mem.read_u64(self.entry(pa)) >> 24 & 0xFF

    def set_host_state(self, pa: int, state: int) -> None:
        entry = self.entry(pa)
        self.mem.write_u64(entry, self.mem.read_u64(entry) & ~0xFF00_0000 | state << 24)

    def add_refcount(self, pa: int, amount: int) -> int:
        """Change a reference count and give the new one; below 0 or above 15 bits is a BUG."""
        entry = self.entry(pa)
        word = self.mem.read_u64(entry)
        count = (word & 0xFFFF) + amount
        if not 0 <= count <= REFCOUNT_MAX:
            what = "is dropped below zero" if count < 0 else "overflows 15 bits"
            raise HypBug(f"the reference count of the page at {pa:#x} {what}")
        self.mem.write_u64(entry, word & ~0xFFFF | count)
        return count

    def set_refcount(self, pa: int, count: int, order: int = 0) -> None:
        """Set count and order of a page that changes between free and used."""
        entry = self.entry(pa)
        self.mem.write_u64(entry, self.mem.read_u64(entry) & ~0xFF_FFFF | order << 16 | count)

    def share_count(self, pa: int) -> int:
        """``host_share_guest_count``: how many guests the host shares the page with."""
        return self.mem.read_u64(self.entry(pa)) >> 32

    def states(self, pa: int, pages: int) -> bytes:
        """The host states of ``pages`` consecutive pages of one region, one byte each."""
        return self._words(pa, pages)[3::HYP_PAGE_SIZE] if pages else b""

    def set_states(self, pa: int, pages: int, state: int) -> None:
        """Set the host state of ``pages`` consecutive pages of one region."""
        if pages == 1:
            self.set_host_state(pa, state)
        elif pages:
            words = bytearray(self._words(pa, pages))
            words[3::HYP_PAGE_SIZE] = bytes((state,)) * pages
            self.mem.write(self.entry(pa), bytes(words))

    def any_referenced(self, pa: int, pages: int) -> bool:
        """Whether one of ``pages`` consecutive pages has references; running off the region is a BUG."""
        where = self.memory.find(pa)
        inside = min(pages, where.end - pa >> PAGE_SHIFT) if where.region else 0
        if inside:
            words = self._words(pa, inside)
            if any(words[0::8]) or any(words[1::8]):
                return True
        if inside < pages:
            if where.region is None:
                self.entry(pa)
            return self.any_referenced(where.end, pages - inside)
        return False

    def _words(self, pa: int, pages: int) -> bytes:
        """The entries of ``pages`` pages, all of which must be in one region."""
        entry = self.entry(pa)
        if self.entry(pa + (pages - 1) * PAGE_SIZE) - entry != (pages - 1) * HYP_PAGE_SIZE:
            raise HypBug(f"{pages} pages from {pa:#x} are not one region: EL2 runs off its vmemmap")
        return self.mem.read(entry, pages * HYP_PAGE_SIZE)

    def first_mismatch(self, pa: int, pages: int, state: int, need_free: bool) -> tuple[int, bool] | None:
        """The first page whose state differs, or (with ``need_free``) that has references.

        Returns:
            None, or (PA, whether it was the reference count).
        """
        if pages == 1:
            word = self.mem.read_u64(self.entry(pa))
            if word >> 24 & 0xFF != state:
                return pa, False
            return (pa, True) if need_free and word & 0xFFFF else None
        if not pages:
            return None
        words = self._words(pa, pages)
        states, low, high = words[3::8], words[0::8], words[1::8]
        if states.count(state) == pages and not (need_free and (any(low) or any(high))):
            return None
        for index in range(pages):
            if states[index] != state:
                return pa + index * PAGE_SIZE, False
            if need_free and (low[index] or high[index]):
                return pa + index * PAGE_SIZE, True
        return None


def _chunks(memory: MemoryMap) -> Iterator[tuple[int, int]]:
    """``(byte offset in the array, bytes)`` of the page-aligned stretches that describe RAM; shared pages only once."""
    end = 0
    for region in memory.regions:
        start = max((region.base >> PAGE_SHIFT) * HYP_PAGE_SIZE & ~PAGE_MASK, end)
        end = max((region.end >> PAGE_SHIFT) * HYP_PAGE_SIZE + PAGE_MASK & ~PAGE_MASK, start)
        if end > start:
            yield start, end - start


def _layout(memory: MemoryMap) -> Iterator[tuple[Region, int]]:
    """Each region with the offset in the backing of its first entry."""
    chunks = list(_chunks(memory))
    for region in memory.regions:
        offset, backed = (region.base >> PAGE_SHIFT) * HYP_PAGE_SIZE, 0
        for start, size in chunks:
            if start <= offset < start + size:
                yield region, backed + offset - start
                break
            backed += size
