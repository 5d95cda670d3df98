"""The EL2 stage-1 table: the linear map of what the hypervisor owns or borrows, and the private range.

Every valid entry and every table entry holds a reference on the table page it is in (counts are in the vmemmap), so a
table without mappings is freed. Sources: arch/arm64/kvm/hyp/pgtable.c (kvm_pgtable_hyp_*), hyp/nvhe/mm.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EINVAL, ENOMEM, EPERM, ERANGE

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.page_state import NOPAGE, RESTRICTED_PROT, U64_MAX
from pkvm_emu.hyp.pgtable import (
    PAGE_HYP,
    PROT_RWX,
    PROT_SW,
    TableFeatures,
    hyp_attr,
    hyp_prot,
    leaf_descriptor,
    state_of,
    visit_leaves,
)
from pkvm_emu.hyp.pool import HypPool
from pkvm_emu.machine.pagetable import (
    ADDR_MASK,
    DESC_TABLE,
    DESC_VALID,
    FIRST_BLOCK_LEVEL,
    LAST_LEVEL,
    LEVEL_SHIFT,
    LEVEL_SIZE,
    PAGE_MASK,
    PAGE_SIZE,
    ZERO_PAGE,
    Leaf,
    OutOfTablePages,
    TableReader,
    is_table,
)


class HypStage1(TableReader):
    """The hypervisor's own translation table.

    Args:
        pool: where table pages come from; its vmemmap's memory holds the table.
        va_bits: EL2 address bits (48 for the emulator's layout, 39 as on GKI).
        linear_offset: hyp VA minus PA of the linear map.
        features: descriptor format.
        flush: called after a change of a live entry.
    """

    def __init__(
        self,
        pool: HypPool,
        va_bits: int,
        linear_offset: int,
        features: TableFeatures,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        root = pool.try_alloc()
        if root is None:
            raise OutOfTablePages("the pool has no page for the root of the EL2 table")
        super().__init__(pool.mem, root, va_bits)
        self.pool = pool
        self.linear_offset = linear_offset
        self.features = features
        self.flush = flush
        self._dirty = False
        #: Called at the end of every operation, whether a live entry changed or not.
        self.on_change: Callable[[], None] = lambda: None

    def va_of(self, pa: int) -> int:
        """Linear-map VA of a physical address (pure arithmetic, as ``hyp_va``)."""
        return (pa + self.linear_offset) & U64_MAX

    def pa_of(self, va: int) -> int:
        """Physical address of a linear-map VA (pure arithmetic, as ``hyp_pa``)."""
        return (va - self.linear_offset) & U64_MAX

    def leaf(self, va: int) -> Leaf | None:
        """The entry that translates ``va``; None outside the input range."""
        return self.walk(va) if 0 <= va < self._limit else None

    def map(self, va: int, size: int, pa: int, prot: int, max_block_level: int = FIRST_BLOCK_LEVEL) -> int:
        """Map ``[va, va+size)`` to ``pa``, with blocks where both are aligned.

        Returns:
            0; -EINVAL for a protection that EL2 does not allow; -ERANGE outside the input range; -ENOMEM when the pool
            is empty (what was mapped until then stays mapped).

        Raises:
            HypBug: a different mapping is there already.
        """
        attr = hyp_attr(prot, self.features)
        if attr < 0:
            return attr
        first, end = va & ~PAGE_MASK, (va & ~PAGE_MASK) + size + PAGE_MASK & ~PAGE_MASK
        if end > self._limit:
            return -ERANGE
        try:
            return self._map(self.root, self.start_level, first, end, (pa & ~PAGE_MASK) - first, attr, max_block_level)
        finally:
            self._flush_if_dirty()

    def map_linear(self, pa: int, size: int, prot: int) -> int:
        """Map ``[pa, pa+size)`` at its linear-map VA, in pages; results as :meth:`map`."""
        return self.map(self.va_of(pa), size, pa, prot, LAST_LEVEL)

    def unmap(self, va: int, size: int) -> int:
        """Unmap from ``va`` up to the first hole or the first block that the range does not cover.

        Returns:
            The bytes that were unmapped.
        """
        end = va + size
        if end > self._limit:
            return 0
        try:
            return self._unmap(self.root, self.start_level, va, end)[0]
        finally:
            self._flush_if_dirty()

    def prot(self, descriptor: int) -> int:
        """The protection that an entry gives."""
        return hyp_prot(descriptor, self.features)

    def page_state(self, descriptor: int) -> int:
        """The hypervisor's state of a page by its entry: NOPAGE when unmapped, RESTRICTED_PROT when not RW."""
        if not descriptor & DESC_VALID:
            return NOPAGE
        restricted = hyp_prot(descriptor, self.features) & PROT_RWX != PAGE_HYP
        return state_of(descriptor) | (RESTRICTED_PROT if restricted else 0)

    def check_state(self, va: int, size: int, state: int) -> tuple[int, int]:
        """Whether every page of a range has ``state``.

        Returns:
            ``(0, 0)``, ``(-EPERM, VA of the first page that differs)``, or ``(-ERANGE, va)`` outside the input range.
        """
        first, end = va & ~PAGE_MASK, (va & ~PAGE_MASK) + size + PAGE_MASK & ~PAGE_MASK
        if end > self._limit:
            return -ERANGE, va
        if end - first == PAGE_SIZE:
            return (0, 0) if self.page_state(self.walk(first).descriptor) == state else (-EPERM, first)
        for address, _, descriptor, _ in visit_leaves(self, first, end):
            if self.page_state(descriptor) != state:
                return -EPERM, max(address, first)
        return 0, 0

    def _flush_if_dirty(self) -> None:
        self.on_change()
        if self._dirty:
            self._dirty = False
            self.flush()

    def _index(self, address: int, level: int) -> int:
        return address >> LEVEL_SHIFT[level] & (self._root_mask if level == self.start_level else 511)

    def _map(self, table: int, level: int, first: int, end: int, delta: int, attr: int, max_block: int) -> int:
        size = LEVEL_SIZE[level]
        if level == LAST_LEVEL:
            return self._map_pages(table, first, end, delta, attr)
        while first < end:
            entry = table + self._index(first, level) * 8
            stop = min(end, (first | size - 1) + 1)
            descriptor = self.mem.read_u64(entry)
            if is_table(descriptor, level):
                child = descriptor & ADDR_MASK
            elif level >= max_block and stop - first == size and not (first + delta) & size - 1:
                self._set_leaf(entry, descriptor, leaf_descriptor(first + delta, attr, level))
                first = stop
                continue
            else:
                if descriptor & DESC_VALID:
                    raise HypBug(f"EL2 maps pages at {first:#x} where a block is mapped")
                new = self.pool.try_alloc()
                if new is None:
                    return -ENOMEM
                self.pool.get_page(entry)
                self.mem.write_u64(entry, new | DESC_TABLE)
                child = new
            error = self._map(child, level + 1, first, stop, delta, attr, max_block)
            if error:
                return error
            first = stop
        return 0

    def _map_pages(self, table: int, first: int, end: int, delta: int, attr: int) -> int:
        entry = table + self._index(first, LAST_LEVEL) * 8
        count = end - first >> 12
        new = leaf_descriptor(first + delta, attr, LAST_LEVEL)
        if count > 1 and self.mem.read(entry, count * 8) == ZERO_PAGE[: count * 8]:
            words = range(new, new + count * PAGE_SIZE, PAGE_SIZE)
            self.mem.write(entry, struct.pack(f"<{count}Q", *words))
            self.pool.get_page(entry, count)
            return 0
        for index in range(count):
            here = entry + index * 8
            self._set_leaf(here, self.mem.read_u64(here), new + index * PAGE_SIZE)
        return 0

    def _set_leaf(self, entry: int, old: int, new: int) -> None:
        if old == new:
            return
        if not old & DESC_VALID:
            self.pool.get_page(entry)
        elif (old ^ new) & ~PROT_SW:
            raise HypBug(f"EL2 changes a live mapping of its own: entry {old:#x} would become {new:#x}")
        else:
            self._dirty = True
        self.mem.write_u64(entry, new)

    def _unmap(self, table: int, level: int, first: int, end: int) -> tuple[int, int]:
        """``(bytes unmapped, errno)`` below one table; empty tables are freed on the way back."""
        size, done = LEVEL_SIZE[level], 0
        if level == LAST_LEVEL:
            return self._unmap_pages(table, first, end)
        while first < end:
            entry = table + self._index(first, level) * 8
            descriptor = self.mem.read_u64(entry)
            if is_table(descriptor, level):
                child = descriptor & ADDR_MASK
                freed, error = self._unmap(child, level + 1, first, min(end, (first | size - 1) + 1))
                done += freed
                if error:
                    return done, error
                if self.pool.page_count(child) == 1:
                    self._drop(entry)
                    self.pool.put_page(child)
            elif not descriptor & DESC_VALID or end - first < size:
                return done, -EINVAL
            else:
                self._drop(entry)
                done += size
            first = (first | size - 1) + 1
        return done, 0

    def _unmap_pages(self, table: int, first: int, end: int) -> tuple[int, int]:
        entry = table + self._index(first, LAST_LEVEL) * 8
        count = end - first + PAGE_MASK >> 12
        descriptors = struct.unpack(f"<{count}Q", self.mem.read(entry, count * 8))
        valid = next((i for i, descriptor in enumerate(descriptors) if not descriptor & DESC_VALID), count)
        if valid:
            self.mem.write(entry, ZERO_PAGE[: valid * 8])
            self.pool.put_page(entry, valid)
            self._dirty = True
        return valid * PAGE_SIZE, 0 if valid == count else -EINVAL

    def _drop(self, entry: int) -> None:
        self.mem.write_u64(entry, 0)
        self._dirty = True
        self.pool.put_page(entry)
