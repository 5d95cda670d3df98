"""The hypervisor's page pool: where EL2 takes page-table pages from.

One pool serves the EL2 stage-1 table and another the host stage-2, as in the hypervisor; both lie in the memory that
the host reserved for EL2 at boot. References are counted in the vmemmap: a page is handed out with one, and goes back
to the pool, zeroed, when its last one is dropped. Which free page comes next is deterministic: untouched memory first,
then the page freed last. Source of the behaviour: arch/arm64/kvm/hyp/nvhe/page_alloc.c.
"""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.page_state import HypVmemmap, MemoryMap
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SIZE, ZERO_PAGE, OutOfTablePages, PhysMem
from pkvm_emu.machine.state import Journal, State, StateDict


class HypPool(State):
    """A pool of ``pages`` pages from ``base``.

    Args:
        journal: owner of the state that goes back with a snapshot.
        vmemmap: where reference counts are kept; its memory is used for the pages too.
        base: PA of the first page.
        pages: how many there are.
        name: name of the state root.
    """

    def __init__(self, journal: Journal, vmemmap: HypVmemmap, base: int, pages: int, name: str) -> None:
        if base & PAGE_MASK:
            raise ValueError(f"pool base {base:#x} is not page aligned")
        super().__init__(journal, name)
        self._vmemmap = vmemmap
        self._mem = vmemmap.mem
        self._base, self._end = base, base + pages * PAGE_SIZE
        self._freed: StateDict[int, int] = StateDict(journal, f"{name}.freed")
        self.next_fresh = base
        self.freed_pages = 0

    def __contains__(self, pa: int) -> bool:
        return self._base <= pa < self._end

    @property
    def mem(self) -> PhysMem:
        """The memory that the pool's pages are in."""
        return self._mem

    @property
    def free_pages(self) -> int:
        """Pages that can still be handed out."""
        return self.freed_pages + (self._end - self.next_fresh) // PAGE_SIZE

    def try_alloc(self, order: int = 0) -> int | None:
        """PA of ``2**order`` zeroed, naturally aligned pages with one reference each; None when there are none."""
        if order:
            return self._alloc_order(order)
        if self.next_fresh < self._end:
            pa = self.next_fresh
            self.next_fresh = pa + PAGE_SIZE
        elif self.freed_pages:
            self.freed_pages -= 1
            pa = self._freed.pop(self.freed_pages)
        else:
            return None
        self._mem.write(pa, ZERO_PAGE)
        self._vmemmap.set_refcount(pa, 1)
        return pa

    def alloc(self) -> int:
        """As :meth:`try_alloc`, for the generic table builder: raises :class:`OutOfTablePages`."""
        pa = self.try_alloc()
        if pa is None:
            raise OutOfTablePages(f"the hypervisor's pool at {self._base:#x} has no page left")
        return pa

    def free(self, pa: int) -> None:
        """Drop the reference that :meth:`alloc` gave."""
        self.put_page(pa)

    def get_page(self, pa: int, amount: int = 1) -> None:
        """Take ``amount`` references on the table page that holds ``pa``."""
        self._vmemmap.add_refcount(pa & ~PAGE_MASK, amount)

    def put_page(self, pa: int, amount: int = 1) -> None:
        """Drop references on the page that holds ``pa``; without any it goes back to the pool."""
        page = pa & ~PAGE_MASK
        if page not in self:
            raise HypBug(f"page {page:#x} is given back to a pool that it is not from")
        if not self._vmemmap.add_refcount(page, -amount):
            self._mem.write(page, ZERO_PAGE)
            self._freed[self.freed_pages] = page
            self.freed_pages += 1

    def page_count(self, pa: int) -> int:
        """References on the page that holds ``pa``."""
        return self._vmemmap.refcount(pa & ~PAGE_MASK)

    def _alloc_order(self, order: int) -> int | None:
        size = PAGE_SIZE << order
        pa = (self.next_fresh + size - 1) & -size
        if pa + size > self._end:
            return None
        for skipped in range(self.next_fresh, pa, PAGE_SIZE):
            self._freed[self.freed_pages] = skipped
            self.freed_pages += 1
        self.next_fresh = pa + size
        for page in range(pa, pa + size, PAGE_SIZE):
            self._mem.write(page, ZERO_PAGE)
            self._vmemmap.set_refcount(page, 1)
        return pa


class Carveout(NamedTuple):
    """How the memory reserved for EL2 is divided; addresses are PAs, sizes are pages."""

    vmemmap: int
    vmemmap_pages: int
    hyp_tables: int
    hyp_table_pages: int
    host_tables: int
    host_table_pages: int
    rest: int
    rest_pages: int


def divide_reserve(base: int, size: int, memory: MemoryMap) -> Carveout:
    """Divide the reserved memory: vmemmap, EL2 stage-1 tables, host stage-2 tables, rest.

    The pools get what the hypervisor asks for: pages for mapping all RAM with 4 KiB entries, 16 concatenated root pages
    for the host, and tables for 1 GiB more (MMIO, private mappings). Source: hyp/nvhe/setup.c (divide_memory_pool).

    Args:
        base, size: the reserved range in bytes, page aligned.
        memory: the RAM regions.

    Raises:
        ValueError: the range is too small.
    """
    vmemmap_pages = HypVmemmap.pages_needed(memory)
    ram_tables = sum(_table_pages(region.size) for region in memory.regions)
    hyp_pages = ram_tables + _table_pages(1 << 30)
    host_pages = 16 + ram_tables + _table_pages(1 << 30)
    needed = vmemmap_pages + hyp_pages + host_pages
    if needed * PAGE_SIZE > size:
        raise ValueError(f"{size >> 10} KiB reserved for EL2 do not hold {needed * 4} KiB of vmemmap and page tables")
    hyp = base + vmemmap_pages * PAGE_SIZE
    host = hyp + hyp_pages * PAGE_SIZE
    rest = host + host_pages * PAGE_SIZE
    return Carveout(base, vmemmap_pages, hyp, hyp_pages, host, host_pages, rest, (base + size - rest) // PAGE_SIZE)


def _table_pages(size: int) -> int:
    """Table pages that map ``size`` bytes with pages, at worst alignment."""
    total, entries = 0, (size + PAGE_MASK) // PAGE_SIZE
    for _ in range(4):
        entries = (entries + 511) // 512
        total += entries
    return total
