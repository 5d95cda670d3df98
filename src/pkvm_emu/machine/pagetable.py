"""Page tables of the 4 KiB granule, kept in guest physical memory.

One reader and one builder serve the EL1 stage-1 tables, the EL2 stage-1 table and any stage-2 table: the three differ
in their start level, in how many root pages they have and in the attribute bits of their leaves, not in their shape.
The layout is the VMSAv8-64 one of the Arm Architecture Reference Manual (DDI 0487, chapter D8): 512 descriptors a
table, bits 1:0 = 3 for a table or page, 1 for a block, bit 0 clear for an invalid entry, whose other bits belong to
software.

>>> memory, pages = FlatMemory(1 << 20), BumpAllocator(0, 1 << 20)
>>> table = PageTable(memory, pages, va_bits=39)
>>> table.map(0x4000_0000, 0x8000_0000, 0x20_0000, attrs=0x700)
>>> table.walk(0x4000_1234)
Leaf(level=2, descriptor=0x80000701, pa=0x80001234)
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from pkvm_emu.errors import EmulatorError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1
ENTRIES = 512
LAST_LEVEL = 3
FIRST_BLOCK_LEVEL = 1

DESC_VALID = 1
DESC_TABLE = 3
ADDR_MASK = 0x0000_FFFF_FFFF_F000

ZERO_PAGE = bytes(PAGE_SIZE)

#: log2 of the bytes that one entry covers, and the bytes, by level 0..3.
LEVEL_SHIFT = (39, 30, 21, 12)
LEVEL_SIZE = tuple(1 << shift for shift in LEVEL_SHIFT)

_TABLE_FORMAT = struct.Struct("<512Q")


class OutOfTablePages(EmulatorError):
    """The allocator of page-table pages is empty."""


class PhysMem(Protocol):
    """Guest physical memory as page tables need it: little-endian u64 words and byte ranges inside RAM."""

    def read_u64(self, pa: int) -> int: ...
    def write_u64(self, pa: int, value: int) -> None: ...
    def read(self, pa: int, n: int) -> bytes: ...
    def write(self, pa: int, data: bytes) -> None: ...


class TableAllocator(Protocol):
    """Where table pages come from and go to."""

    def alloc(self) -> int:
        """The PA of a zeroed page; raises :class:`OutOfTablePages`."""

    def free(self, pa: int) -> None:
        """Give a page back."""


class FlatMemory:
    """RAM of ``size`` bytes from physical address ``base``, for tests and examples."""

    def __init__(self, size: int, base: int = 0) -> None:
        self.base = base
        self.data = mmap.mmap(-1, size)
        self._words = memoryview(self.data).cast("Q")

    def read_u64(self, pa: int) -> int:
        return self._words[(pa - self.base) >> 3]

    def write_u64(self, pa: int, value: int) -> None:
        self._words[(pa - self.base) >> 3] = value

    def read(self, pa: int, n: int) -> bytes:
        start = pa - self.base
        return self.data[start : start + n]

    def write(self, pa: int, data: bytes) -> None:
        start = pa - self.base
        if start < 0 or start + len(data) > len(self.data):
            raise IndexError(f"write of {len(data)} bytes at PA {pa:#x} is outside the memory")
        self.data[start : start + len(data)] = data


class BumpAllocator:
    """Zeroed pages of ``[start, end)`` in ascending order; freed pages are used again, last first."""

    def __init__(self, start: int, end: int, zero: Callable[[int], None] | None = None) -> None:
        self._next, self._end = start, end
        self._zero = zero
        self.freed: list[int] = []

    def alloc(self) -> int:
        if self.freed:
            pa = self.freed.pop()
        elif self._next < self._end:
            pa, self._next = self._next, self._next + PAGE_SIZE
        else:
            raise OutOfTablePages("no page is left for page tables: give the region more memory")
        if self._zero is not None:
            self._zero(pa)
        return pa

    def free(self, pa: int) -> None:
        self.freed.append(pa)


class Leaf(NamedTuple):
    """The entry at which a walk ends.

    Attributes:
        level: level of the entry, 0..3.
        descriptor: its 64 bits; an invalid entry is given as it stands (software may keep an annotation there).
        pa: output address of the walked address, 0 when the entry is invalid.
        entry: physical address of the descriptor itself.
    """

    level: int
    descriptor: int
    pa: int
    entry: int

    @property
    def valid(self) -> bool:
        return bool(self.descriptor & DESC_VALID)

    def __repr__(self) -> str:
        return f"Leaf(level={self.level}, descriptor={self.descriptor:#x}, pa={self.pa:#x})"


class Mapping(NamedTuple):
    """One leaf of an iteration: ``size`` bytes from ``va``."""

    va: int
    size: int
    level: int
    descriptor: int
    pa: int


def start_level_of(va_bits: int) -> int:
    """First level of a stage-1 walk over ``va_bits`` bits of address (12 < va_bits <= 48)."""
    if not PAGE_SHIFT < va_bits <= 48:
        raise ValueError(f"{va_bits} address bits: the 4 KiB granule has 13 to 48")
    return LAST_LEVEL + 1 - (va_bits - PAGE_SHIFT + 8) // 9


def is_table(descriptor: int, level: int) -> bool:
    """Whether a descriptor read at ``level`` points at a next-level table."""
    return level < LAST_LEVEL and descriptor & 3 == DESC_TABLE


class TableReader:
    """Read side of one translation table.

    Args:
        mem: guest physical memory.
        root: PA of the (first) root page.
        va_bits: input address bits; with ``start_level`` it decides how many root pages are concatenated.
        start_level: level of the root; by default that of a stage-1 table of ``va_bits``.
        va_base: lowest address the table translates (the start of the upper half for a TTBR1 table).
    """

    def __init__(self, mem: PhysMem, root: int, va_bits: int, start_level: int | None = None, va_base: int = 0) -> None:
        self.mem = mem
        self.root = root
        self.va_bits = va_bits
        self.va_base = va_base
        self.start_level = start_level_of(va_bits) if start_level is None else start_level
        self._root_mask = (1 << va_bits >> LEVEL_SHIFT[self.start_level]) - 1
        self._limit = 1 << va_bits

    @property
    def root_pages(self) -> int:
        """Concatenated root pages: 1, or 2..16 for a stage-2 table that starts a level lower."""
        return max(1, (self._root_mask + 1) // ENTRIES)

    def walk(self, va: int) -> Leaf:
        """Follow ``va`` down to a block, a page or an invalid entry.

        Raises:
            ValueError: the address is outside the input range.
        """
        offset = va - self.va_base
        if not 0 <= offset < self._limit:
            raise ValueError(f"address {va:#x} is outside the {self.va_bits}-bit input range")
        read = self.mem.read_u64
        level = self.start_level
        entry = self.root + ((offset >> LEVEL_SHIFT[level]) & self._root_mask) * 8
        descriptor = read(entry)
        while level < LAST_LEVEL and descriptor & 3 == DESC_TABLE:
            level += 1
            entry = (descriptor & ADDR_MASK) + ((offset >> LEVEL_SHIFT[level]) & 511) * 8
            descriptor = read(entry)
        if descriptor & DESC_VALID:
            low = LEVEL_SIZE[level] - 1
            return Leaf(level, descriptor, (descriptor & ADDR_MASK & ~low) | (offset & low), entry)
        return Leaf(level, descriptor, 0, entry)

    def descriptors(self, va: int) -> list[int]:
        """The descriptors that a walk of ``va`` reads, from the root to the last one."""
        offset, level = va - self.va_base, self.start_level
        found = [self.mem.read_u64(self.root + ((offset >> LEVEL_SHIFT[level]) & self._root_mask) * 8)]
        while level < LAST_LEVEL and found[-1] & 3 == DESC_TABLE:
            level += 1
            found.append(self.mem.read_u64((found[-1] & ADDR_MASK) + ((offset >> LEVEL_SHIFT[level]) & 511) * 8))
        return found

    def leaves(self, start: int | None = None, end: int | None = None, invalid: bool = False) -> Iterator[Mapping]:
        """The valid leaves that touch ``[start, end)``, ascending; with ``invalid`` also non-zero invalid entries."""
        first = 0 if start is None else start - self.va_base
        last = self._limit if end is None else end - self.va_base
        return self._leaves(self.root, self.start_level, 0, max(first, 0), min(last, self._limit), invalid)

    def tables(self) -> Iterator[tuple[int, int, int]]:
        """``(level of its entries, PA, first address)`` of every table below the root, parents first."""
        return self._tables(self.root, self.start_level, 0)

    def entries(self, table: int, level: int) -> tuple[int, ...]:
        """The descriptors of one table (of all root pages at the start level)."""
        if table == self.root and level == self.start_level:
            count = self._root_mask + 1
            return struct.unpack(f"<{count}Q", self.mem.read(table, count * 8))
        return _TABLE_FORMAT.unpack(self.mem.read(table, PAGE_SIZE))

    def _leaves(self, table: int, level: int, base: int, first: int, last: int, invalid: bool) -> Iterator[Mapping]:
        if first >= last:
            return
        shift, size = LEVEL_SHIFT[level], LEVEL_SIZE[level]
        descriptors = self.entries(table, level)
        low = (first - base) >> shift if first > base else 0
        high = min(len(descriptors), (last - base + size - 1) >> shift)
        for index in range(low, high):
            descriptor = descriptors[index]
            if not descriptor:
                continue
            address = base + (index << shift)
            if is_table(descriptor, level):
                yield from self._leaves(descriptor & ADDR_MASK, level + 1, address, first, last, invalid)
            elif descriptor & DESC_VALID:
                yield Mapping(self.va_base + address, size, level, descriptor, descriptor & ADDR_MASK & -size)
            elif invalid:
                yield Mapping(self.va_base + address, size, level, descriptor, 0)

    def _tables(self, table: int, level: int, base: int) -> Iterator[tuple[int, int, int]]:
        for index, descriptor in enumerate(self.entries(table, level)):
            if is_table(descriptor, level):
                child, address = descriptor & ADDR_MASK, base + (index << LEVEL_SHIFT[level])
                yield level + 1, child, self.va_base + address
                yield from self._tables(child, level + 1, address)


class PageTable(TableReader):
    """A table that is built and changed here; mappings are made with the largest blocks that fit.

    Args:
        alloc: source of table pages, the root pages included.
        flush: called once at the end of an operation that changed a live entry (a TLB invalidation).
        Others as for :class:`TableReader`.
    """

    def __init__(
        self,
        mem: PhysMem,
        alloc: TableAllocator,
        va_bits: int,
        start_level: int | None = None,
        flush: Callable[[], None] = lambda: None,
        va_base: int = 0,
    ) -> None:
        super().__init__(mem, alloc.alloc(), va_bits, start_level, va_base)
        self.alloc = alloc
        self.flush = flush
        self._dirty = False
        #: Called at the end of every operation, whether a live entry changed or not.
        self.on_change: Callable[[], None] = lambda: None
        for page in range(1, self.root_pages):
            if alloc.alloc() != self.root + page * PAGE_SIZE:
                raise OutOfTablePages("concatenated root pages must be adjacent: allocate them first")

    def map(self, va: int, pa: int, size: int, attrs: int, max_block_level: int = FIRST_BLOCK_LEVEL) -> None:
        """Map ``[va, va+size)`` to ``pa``; what was mapped there is replaced.

        Args:
            va, pa, size: bytes, page aligned.
            attrs: the descriptor's attribute bits, without type and address.
            max_block_level: lowest level number a block may have: 1 for 1 GiB, 2 for 2 MiB, 3 for pages only.

        Raises:
            ValueError: unaligned, or outside the input range.
            OutOfTablePages: no table page is left; what was mapped until then stays.
        """
        first = self._check(va, size)
        if pa & PAGE_MASK:
            raise ValueError(f"physical address {pa:#x} is not page aligned")
        try:
            self._map(self.root, self.start_level, first, first + size, pa - first, attrs, max_block_level)
        finally:
            self._flush_if_dirty()

    def unmap(self, va: int, size: int) -> None:
        """Clear ``[va, va+size)``: blocks that are only partly covered are split, empty tables are freed."""
        first = self._check(va, size)
        try:
            self._clear(self.root, self.start_level, first, first + size)
        finally:
            self._flush_if_dirty()

    def protect(self, va: int, size: int, set_bits: int, clear_bits: int) -> None:
        """Change attribute bits of the valid leaves in a range; partly covered blocks are split."""
        first = self._check(va, size)
        try:
            self._protect(self.root, self.start_level, first, first + size, set_bits, clear_bits)
        finally:
            self._flush_if_dirty()

    def _check(self, va: int, size: int) -> int:
        first = va - self.va_base
        if (va | size) & PAGE_MASK:
            raise ValueError(f"range {va:#x}+{size:#x} is not page aligned")
        if not 0 <= first <= first + size <= self._limit:
            raise ValueError(f"range {va:#x}+{size:#x} is outside the {self.va_bits}-bit input range")
        return first

    def _flush_if_dirty(self) -> None:
        self.on_change()
        if self._dirty:
            self._dirty = False
            self.flush()

    def _index(self, offset: int, level: int) -> int:
        return (offset >> LEVEL_SHIFT[level]) & (self._root_mask if level == self.start_level else 511)

    def _map(self, table: int, level: int, first: int, end: int, delta: int, attrs: int, max_block: int) -> None:
        size = LEVEL_SIZE[level]
        while first < end:
            entry = table + self._index(first, level) * 8
            boundary = (first | (LEVEL_SIZE[level - 1] - 1)) + 1 if level > self.start_level else self._limit
            whole = min(end, boundary) - first >> LEVEL_SHIFT[level]
            if level == LAST_LEVEL or (level >= max_block and whole and not (first | first + delta) & (size - 1)):
                self._write_run(entry, level, whole, first + delta, attrs)
                first += whole << LEVEL_SHIFT[level]
            else:
                stop = min(end, (first | (size - 1)) + 1)
                self._map(self._descend(entry, level), level + 1, first, stop, delta, attrs, max_block)
                first = stop

    def _write_run(self, entry: int, level: int, count: int, pa: int, attrs: int) -> None:
        low = attrs | (DESC_TABLE if level == LAST_LEVEL else DESC_VALID)
        if count == 1:
            self._release(entry, level, self.mem.read_u64(entry))
            self.mem.write_u64(entry, pa | low)
            return
        old = self.mem.read(entry, count * 8)
        if old != ZERO_PAGE[: count * 8]:
            for index, descriptor in enumerate(struct.unpack(f"<{count}Q", old)):
                self._release(entry + index * 8, level, descriptor)
        size = LEVEL_SIZE[level]
        self.mem.write(entry, struct.pack(f"<{count}Q", *range(pa | low, (pa | low) + count * size, size)))

    def _release(self, entry: int, level: int, descriptor: int) -> None:
        """An entry is about to be replaced: a table below it goes back to the allocator."""
        if descriptor & DESC_VALID:
            self._dirty = True
            if is_table(descriptor, level):
                self.mem.write_u64(entry, 0)
                self._free_tree(descriptor & ADDR_MASK, level + 1)

    def _free_tree(self, table: int, level: int) -> None:
        if level < LAST_LEVEL:
            for descriptor in self.entries(table, level):
                if is_table(descriptor, level):
                    self._free_tree(descriptor & ADDR_MASK, level + 1)
        self.alloc.free(table)

    def _descend(self, entry: int, level: int) -> int:
        """The table below ``entry``, made if there is none; a block is split into an equal table."""
        descriptor = self.mem.read_u64(entry)
        if is_table(descriptor, level):
            return descriptor & ADDR_MASK
        child = self.alloc.alloc()
        if descriptor & DESC_VALID:
            step = LEVEL_SIZE[level + 1]
            value = descriptor | DESC_TABLE if level + 1 == LAST_LEVEL else descriptor
            self.mem.write(child, _TABLE_FORMAT.pack(*range(value, value + ENTRIES * step, step)))
            self._dirty = True
        self.mem.write_u64(entry, child | DESC_TABLE)
        return child

    def _clear(self, table: int, level: int, first: int, end: int) -> None:
        size = LEVEL_SIZE[level]
        while first < end:
            entry = table + self._index(first, level) * 8
            descriptor = self.mem.read_u64(entry)
            stop = min(end, (first | (size - 1)) + 1)
            if stop - first == size or not descriptor & DESC_VALID:
                if descriptor:
                    self._release(entry, level, descriptor)
                    self.mem.write_u64(entry, 0)
            else:
                child = self._descend(entry, level)
                self._clear(child, level + 1, first, stop)
                if self.mem.read(child, PAGE_SIZE) == ZERO_PAGE:
                    self.mem.write_u64(entry, 0)
                    self.alloc.free(child)
            first = stop

    def _protect(self, table: int, level: int, first: int, end: int, set_bits: int, clear_bits: int) -> None:
        size = LEVEL_SIZE[level]
        while first < end:
            entry = table + self._index(first, level) * 8
            descriptor = self.mem.read_u64(entry)
            stop = min(end, (first | (size - 1)) + 1)
            if descriptor & DESC_VALID:
                if is_table(descriptor, level) or stop - first < size:
                    self._protect(self._descend(entry, level), level + 1, first, stop, set_bits, clear_bits)
                else:
                    changed = descriptor & ~clear_bits | set_bits
                    if changed != descriptor:
                        self._dirty = True
                        self.mem.write_u64(entry, changed)
            first = stop
