"""The host stage-2: an identity map that says, page by page, what the host may touch.

This is the policy around the table: what is filled when the host faults, what is dropped when table pages run out, who
hears of changes. Source: arch/arm64/kvm/hyp/nvhe/mem_protect.c (host_stage2_*).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, ENOMEM, EPERM, ERANGE

from pkvm_emu.abi.ownership import OwnershipRules
from pkvm_emu.hyp.host_stage2_table import HostStage2Table
from pkvm_emu.hyp.page_state import MemoryMap
from pkvm_emu.hyp.pgtable import HOST_MEM_PROT, HOST_MMIO_PROT, TableFeatures
from pkvm_emu.hyp.pool import HypPool
from pkvm_emu.machine.pagetable import FIRST_BLOCK_LEVEL, LAST_LEVEL, LEVEL_SIZE, Leaf
from pkvm_emu.machine.state import Journal, State


class HostStage2(State):
    """The host stage-2 with the policy around the table: lazy fills, recycling, hooks of the IOMMU core.

    Args:
        journal: owner of what goes back with a snapshot.
        pool, memory, rules, features, ipa_bits, flush: as for :class:`HostStage2Table`.
        protected_ranges: ``(start, bytes)`` outside RAM that the device tree protects; never recycled.

    Attributes:
        finalised: the host is deprivileged (or about to be): from here on tables may become blocks.
    """

    def __init__(
        self,
        journal: Journal,
        pool: HypPool,
        memory: MemoryMap,
        rules: OwnershipRules,
        features: TableFeatures,
        ipa_bits: int = 48,
        flush: Callable[[], None] = lambda: None,
        protected_ranges: tuple[tuple[int, int], ...] = (),
    ) -> None:
        super().__init__(journal, "host_stage2")
        self.finalised = False
        self._memory = memory
        self._rules = rules
        self._ipa_bits = ipa_bits
        self._table = HostStage2Table(pool, memory, rules, features, ipa_bits, flush, lambda: self.finalised)
        moveable = sorted([(r.base, r.size) for r in memory.regions] + list(protected_ranges))
        self._recyclable = _gaps(moveable, 1 << ipa_bits)
        self._idmap_hooks: list[Callable[[int, int, int], None]] = []
        self._complete_hooks: list[Callable[[bool], None]] = []

    @property
    def table(self) -> HostStage2Table:
        """The table itself (root, walks, iteration)."""
        return self._table

    def add_iommu_hooks(
        self, idmap: Callable[[int, int, int], None], complete: Callable[[bool], None], first: bool = False
    ) -> None:
        """Have changes mirrored: ``idmap(start, end, prot)`` for each, then ``complete(mapped)``.

        ``first``: before those that are there already.
        """
        self._idmap_hooks.insert(0 if first else len(self._idmap_hooks), idmap)
        self._complete_hooks.insert(0 if first else len(self._complete_hooks), complete)

    def tell_iommu(self, start: int, end: int, prot: int) -> None:
        """Report a change to the IOMMU core, without completing it."""
        for hook in self._idmap_hooks:
            hook(start, end, prot)

    def complete_iommu(self, mapped: bool) -> None:
        """Let the IOMMU core finish the changes reported so far."""
        for hook in self._complete_hooks:
            hook(mapped)

    def prepopulate(self) -> int:
        """Map all RAM RWX, as EL2 does when it creates the table. Result: 0 or a negative errno."""
        for region in self._memory.regions:
            error = self.idmap(region.base, region.size, HOST_MEM_PROT)
            if error:
                return error
        return 0

    def get_leaf(self, address: int) -> Leaf | None:
        """The entry of a physical address as it stands, annotations included; None (-ERANGE) beyond the IPA range."""
        return self._table.leaf(address)

    def idmap(self, start: int, size: int, prot: int, update_iommu: bool = False) -> int:
        """Identity-map a range with ``prot``, recycling MMIO tables when the pool is empty. Result: errno."""
        error = self._retrying(lambda: self._table.map(start, size, prot))
        if not error and update_iommu:
            self.tell_iommu(start, start + size, prot)
            self.complete_iommu(bool(prot))
        return error

    def annotate(self, start: int, size: int, annotation: int) -> int:
        """Take a range from the host, leaving ``annotation`` in its entries. Result: errno."""
        return self._retrying(lambda: self._table.annotate(start, size, annotation))

    def fault(self, address: int) -> int:
        """A translation fault of the host: fill the largest default block around ``address`` that fits.

        Returns:
            0 when the access can be tried again, -EAGAIN when it could be before already, -EPERM when the page is
            somebody else's; another errno is a BUG of the hypervisor.
        """
        leaf = self._table.leaf(address)
        if leaf is None:
            return -ERANGE
        if leaf.valid:
            return -EAGAIN
        if leaf.descriptor:
            return -EPERM
        where = self._memory.find(address)
        level = leaf.level
        while True:
            size = LEVEL_SIZE[level]
            start = address & -size
            level += 1
            # The level tested is the one below: a 512 GiB hole is filled with 1 GiB blocks at once.
            if level > LAST_LEVEL or (
                level >= FIRST_BLOCK_LEVEL and where.start <= start and start + size <= where.end
            ):
                break
        is_memory = where.region is not None
        prot = HOST_MEM_PROT if is_memory else HOST_MMIO_PROT
        if self._rules.fault_recycles_tables:
            return self.idmap(start, size, prot, update_iommu=not is_memory)
        return self._table.map(start, size, prot)

    def _retrying(self, change: Callable[[], int]) -> int:
        error = change()
        if error == -ENOMEM:
            for start, end in self._recyclable:
                self._table.reclaim(start, end)
                self.tell_iommu(start, end, 0)
                self.complete_iommu(False)
            error = change()
        return error


def _gaps(taken: list[tuple[int, int]], end: int) -> tuple[tuple[int, int], ...]:
    gaps, address = [], 0
    for start, size in taken:
        if start > address:
            gaps.append((address, start))
        address = max(address, start + size)
    if address < end:
        gaps.append((address, end))
    return tuple(gaps)
