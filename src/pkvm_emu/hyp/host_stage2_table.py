"""The host stage-2 table: walks that change it as the hypervisor's walkers do.

Default mappings (RAM RWX, everything else RW) are made in the largest blocks that fit and are not counted: they can be
made again at any time. Everything else - an annotation (the owner id of a page the host lost), another permission, a
page that is filled lazily - needs a page-sized entry and holds a reference on its table. Splitting a block fills the
new table with the default mapping; a table that holds nothing but default mappings may become a block again. Sources:
arch/arm64/kvm/hyp/pgtable.c (kvm_pgtable_stage2_*), hyp/nvhe/mem_protect.c (host_stage2_pte_is_counted, _force_pte).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import ENOMEM, ERANGE

from pkvm_emu.abi.ownership import OwnershipRules
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.page_state import MemoryMap
from pkvm_emu.hyp.pgtable import (
    HOST_MEM_PROT,
    HOST_MMIO_PROT,
    PROT_SW,
    TableFeatures,
    default_host_attr,
    leaf_descriptor,
    stage2_attr,
    visit_leaves,
)
from pkvm_emu.hyp.pool import HypPool
from pkvm_emu.machine.pagetable import (
    ADDR_MASK,
    DESC_TABLE,
    DESC_VALID,
    ENTRIES,
    FIRST_BLOCK_LEVEL,
    LAST_LEVEL,
    LEVEL_SHIFT,
    LEVEL_SIZE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Leaf,
    OutOfTablePages,
    TableReader,
    is_table,
)


class _Change:
    """What one walk writes: a mapping (``attr``) or an annotation in every leaf of ``[start, end)``."""

    __slots__ = ("annotation", "attr", "end", "extra_refs", "force_pte", "replaces_tables", "start")

    def __init__(self, start: int, end: int, attr: int | None, annotation: int, force_pte: bool) -> None:
        self.start, self.end = start, end
        self.attr, self.annotation = attr, annotation
        self.force_pte = force_pte
        self.replaces_tables = True
        self.extra_refs = 0

    def entry(self, address: int, level: int) -> int:
        return self.annotation if self.attr is None else leaf_descriptor(address, self.attr, level)


class HostStage2Table(TableReader):
    """Walks that change the host's table, as the hypervisor's walkers do it.

    Args:
        pool: where table pages come from.
        memory: RAM and gaps.
        rules: the generation.
        features: descriptor format.
        ipa_bits: input (and physical) address bits.
        flush: called after a change of a live entry.
        may_collapse: whether tables may become blocks (protected mode is initialised).
    """

    def __init__(
        self,
        pool: HypPool,
        memory: MemoryMap,
        rules: OwnershipRules,
        features: TableFeatures,
        ipa_bits: int,
        flush: Callable[[], None],
        may_collapse: Callable[[], bool],
    ) -> None:
        start_level, order = _root_shape(ipa_bits)
        root = pool.try_alloc(order)
        if root is None:
            raise OutOfTablePages("the pool has no pages for the root of the host stage-2")
        super().__init__(pool.mem, root, ipa_bits, start_level)
        self.pool = pool
        self.memory = memory
        self.rules = rules
        self.features = features
        self.flush = flush
        self.may_collapse = may_collapse
        self.default_attr = {m: default_host_attr(m, features) for m in (True, False)}
        self._leaf_mask = features.leaf_mask
        self._dirty = False
        #: Called at the end of every operation, whether a live entry changed or not.
        self.on_change: Callable[[], None] = lambda: None

    def leaf(self, address: int) -> Leaf | None:
        """The entry of an IPA; None beyond the input range."""
        return self.walk(address) if 0 <= address < self._limit else None

    def is_counted(self, descriptor: int, level: int) -> bool:
        """Whether an entry holds a reference on its table: everything but nothing and default mappings."""
        if not descriptor & DESC_VALID:
            return descriptor != 0
        if is_table(descriptor, level):
            return True
        default = self.default_attr[self.memory.is_memory(descriptor & ADDR_MASK)]
        return descriptor & self._leaf_mask != default

    def map(self, start: int, size: int, prot: int) -> int:
        """Identity-map a range; pages only unless ``prot`` is the default one.

        Returns:
            0, -EINVAL (a protection stage-2 does not have), -ERANGE, or -ENOMEM (partly done).
        """
        attr = stage2_attr(prot, self.features)
        if attr < 0:
            return attr
        end = start + size
        default = HOST_MEM_PROT if self.memory.range_is_memory(start, end) else HOST_MMIO_PROT
        return self._run(_Change(start, end, attr, 0, force_pte=prot != default))

    def annotate(self, start: int, size: int, annotation: int) -> int:
        """Write an invalid entry into every page of a range; results as :meth:`map`."""
        return self._run(_Change(start, start + size, None, annotation, force_pte=True))

    def hold_pages(self, start: int, size: int) -> int:
        """Empty every page entry of a range and keep its table (lazy entries); results as :meth:`map`."""
        change = _Change(start, start + size, None, 0, force_pte=True)
        change.replaces_tables = False
        change.extra_refs = 1
        return self._run(change)

    def release_pages(self, start: int, size: int) -> int:
        """Give up the references that :meth:`hold_pages` took."""
        if start + size > self._limit:
            return -ERANGE
        for address, level, _, entry in list(visit_leaves(self, start, start + size)):
            if level != LAST_LEVEL:
                raise HypBug(f"lazy entries are switched off for {address:#x}, which is mapped by a block: never on")
            if self.pool.page_count(entry) == 1:
                raise HypBug(f"lazy entries are switched off for {address:#x} more often than on: its table is freed")
            self.pool.put_page(entry)
        return 0

    def reclaim(self, start: int, end: int) -> None:
        """Drop every table of a range that holds only default mappings."""
        self._reclaim(self.root, self.start_level, start, min(end, self._limit))
        self._flush_if_dirty()

    def pin_tables(self) -> None:
        """Take a reference on every table there is now: it stays for ever."""
        for _, table, _ in list(self.tables()):
            self.pool.get_page(table)

    def _run(self, change: _Change) -> int:
        if change.end > self._limit:
            return -ERANGE
        try:
            return self._change(self.root, self.start_level, change.start, change)
        finally:
            self._flush_if_dirty()

    def _flush_if_dirty(self) -> None:
        self.on_change()
        if self._dirty:
            self._dirty = False
            self.flush()

    def _change(self, table: int, level: int, address: int, change: _Change) -> int:
        mask = self._root_mask if level == self.start_level else ENTRIES - 1
        index = address >> LEVEL_SHIFT[level] & mask
        if level == LAST_LEVEL:
            pages = min(mask + 1 - index, change.end - address + PAGE_MASK >> PAGE_SHIFT)
            return self._change_pages(table + index * 8, address, pages, change)
        size = LEVEL_SIZE[level]
        while address < change.end and index <= mask:
            error = self._change_entry(table + index * 8, level, address, change)
            if error:
                return error
            address = (address | size - 1) + 1
            index += 1
        return 0

    def _change_entry(self, entry: int, level: int, address: int, change: _Change) -> int:
        """One entry above the last level: a block is written, or the walk goes down."""
        size = LEVEL_SIZE[level]
        old = self.mem.read_u64(entry)
        table = is_table(old, level)
        fits = (
            level >= FIRST_BLOCK_LEVEL
            and not change.force_pte
            and not address & size - 1
            and size <= change.end - address
        )
        if fits and (not table or change.replaces_tables):
            self._set(entry, level, old, change.entry(address, level))
            if table:
                self._free_unlinked(old & ADDR_MASK, level + 1)
            return 0
        if not table:
            child = self._split(entry, level, old, address, change)
            if child is None:
                return -ENOMEM
        else:
            child = old & ADDR_MASK
        error = self._change(child, level + 1, address, change)
        if not error and level >= FIRST_BLOCK_LEVEL and change.replaces_tables:
            self._tidy(entry, child, level, address, change)
        return error

    def _change_pages(self, entry: int, address: int, pages: int, change: _Change) -> int:
        if pages == 1:
            self._set(entry, LAST_LEVEL, self.mem.read_u64(entry), change.entry(address, LAST_LEVEL))
            if change.extra_refs:
                self.pool.get_page(entry, change.extra_refs)
            return 0
        old = struct.unpack(f"<{pages}Q", self.mem.read(entry, pages * 8))
        new = [change.entry(address + i * PAGE_SIZE, LAST_LEVEL) for i in range(pages)]
        delta = self._count(new) - self._count(old) + pages * change.extra_refs
        if any(o & DESC_VALID and (o ^ n) & ~PROT_SW for o, n in zip(old, new)):
            self._dirty = True
        self.mem.write(entry, struct.pack(f"<{pages}Q", *new))
        self._add_refs(entry, delta)
        return 0

    def _count(self, descriptors: list[int] | tuple[int, ...]) -> int:
        counted = self.is_counted
        return sum(1 for descriptor in descriptors if descriptor and counted(descriptor, LAST_LEVEL))

    def _add_refs(self, entry: int, delta: int) -> None:
        if delta > 0:
            self.pool.get_page(entry, delta)
        elif delta:
            self.pool.put_page(entry, -delta)

    def _set(self, entry: int, level: int, old: int, new: int) -> None:
        if old == new:
            return
        if old & DESC_VALID and (old ^ new) & ~PROT_SW:
            self._dirty = True
        self.mem.write_u64(entry, new)
        self._add_refs(entry, self.is_counted(new, level) - self.is_counted(old, level))

    def _split(self, entry: int, level: int, old: int, address: int, change: _Change) -> int | None:
        """Put a table where a block or nothing was; a block's mapping goes on in it, except in the target."""
        child = self.pool.try_alloc()
        if child is None:
            return None
        if self.is_counted(old, level):
            raise HypBug(f"the host stage-2 has a counted entry {old:#x} at level {level} for {address:#x}")
        if old & DESC_VALID:
            self.mem.write(child, self._prefill(old, level, address, change))
            self._dirty = True
        self.mem.write_u64(entry, child | DESC_TABLE)
        self.pool.get_page(entry)
        return child

    def _prefill(self, block: int, level: int, address: int, change: _Change) -> bytes:
        step = LEVEL_SIZE[level + 1]
        base = block & ADDR_MASK
        first = leaf_descriptor(base, block & self._leaf_mask, level + 1)
        words = bytearray(struct.pack("<512Q", *range(first, first + ENTRIES * step, step)))
        if level + 1 == LAST_LEVEL or not self.rules.prefill_target_blocks:
            low = (max(address - base, 0) + step - 1) // step
            high = min(ENTRIES, (change.end - base + step - 1) // step)
            if high > low:
                words[low * 8 : high * 8] = bytes((high - low) * 8)
        return bytes(words)

    def _tidy(self, entry: int, child: int, level: int, address: int, change: _Change) -> None:
        """On the way back up: a table without counted entries becomes a block, or goes, by the generation's rule."""
        if self.pool.page_count(child) != 1:
            return
        if self.rules.empty_tables == "become_blocks":
            if change.attr is None or not self.may_collapse():
                return
            new = leaf_descriptor(address & -LEVEL_SIZE[level], change.attr, level)
        else:
            if change.attr is not None:
                return
            new = 0
        self._set(entry, level, self.mem.read_u64(entry), new)
        self.pool.put_page(child)

    def _free_unlinked(self, table: int, level: int) -> None:
        """Free a table that was replaced by a block, with everything below it."""
        counted = 0
        for descriptor in self.entries(table, level):
            if is_table(descriptor, level):
                self._free_unlinked(descriptor & ADDR_MASK, level + 1)
            counted += self.is_counted(descriptor, level)
        if counted:
            self.pool.put_page(table, counted)
        if self.pool.page_count(table) != 1 and self.rules.unlinked_table_must_be_idle:
            raise HypBug(f"the host stage-2 replaces the pinned table {table:#x} by a block")
        self.pool.put_page(table)

    def _reclaim(self, table: int, level: int, start: int, end: int) -> None:
        size = LEVEL_SIZE[level]
        for index, descriptor in enumerate(self.entries(table, level)):
            if not is_table(descriptor, level):
                continue
            base = self._table_base(start, level) + index * size
            if base + size <= start or base >= end:
                continue
            child = descriptor & ADDR_MASK
            self._reclaim(child, level + 1, max(start, base), min(end, base + size))
            if level >= FIRST_BLOCK_LEVEL and self.pool.page_count(child) == 1:
                self._dirty = True
                self.mem.write_u64(table + index * 8, 0)
                self.pool.put_page(table)
                self.pool.put_page(child)

    def _table_base(self, address: int, level: int) -> int:
        """First address of the table at ``level`` that holds the entry of ``address``."""
        return 0 if level == self.start_level else address & -LEVEL_SIZE[level - 1]


def _root_shape(ipa_bits: int) -> tuple[int, int]:
    """``(start level, log2 of root pages)``: up to 16 root pages are concatenated, and at least two levels are used."""
    levels = max(2, (ipa_bits - 4 - PAGE_SHIFT + 8) // 9)
    start_level = LAST_LEVEL + 1 - levels
    return start_level, max(0, ipa_bits - LEVEL_SHIFT[start_level] - 9)
