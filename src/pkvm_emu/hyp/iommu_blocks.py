"""The IOMMU core's block pools (android15): 2 MiB pieces of one memory region of the host's, cut up by a buddy allocator.

The host announces the region (``pkvm,cma`` in its device tree) and gives pieces of it through the same list as other pages. Source:
arch/arm64/kvm/hyp/nvhe/iommu/iommu.c of android15-6.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.machine.pagetable import PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: Where EL1 stores ``cma_base`` and ``cma_size``, from the start of the hypervisor's part of the kernel image.
CMA_OFFSET = 0x20_0018
BLOCK_ORDER, MAX_BLOCKS = 9, 16
BLOCK_SIZE = PAGE_SIZE << BLOCK_ORDER


class BlockPools(State):
    """The pools of one hypervisor, one for each piece.

    Attributes:
        blocks: PA of the piece by pool number.
        last: the pool that gave pages last; the next search begins there.
        free: order by PA of what is free.
        used: order by PA of what is taken.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        journal = hyp.machine.journal
        super().__init__(journal, "hyp.iommu.blocks")
        self._hyp = hyp
        self.last = 0
        self.blocks: StateDict[int, int] = StateDict(journal)
        self.free: StateDict[int, int] = StateDict(journal)
        self.used: StateDict[int, int] = StateDict(journal)

    def _region(self) -> tuple[int, int]:
        at = self._hyp._image_pa + CMA_OFFSET
        base, size = (self._hyp.machine.ram.read_u64(at + 8 * word) for word in range(2))
        return base, base + size

    def in_region(self, pa: int) -> bool:
        """Whether an address lies in the host's region."""
        base, end = self._region()
        return base <= pa < end

    def is_block(self, pa: int, order: int) -> bool:
        """Whether what the host gives is a piece for a pool of its own."""
        base, end = self._region()
        return order == BLOCK_ORDER and not pa % BLOCK_SIZE and base <= pa and pa + BLOCK_SIZE <= end

    def add(self, pa: int) -> bool:
        """Make a pool of a piece; False where all 16 are in use."""
        number = next((number for number in range(MAX_BLOCKS) if number not in self.blocks), None)
        if number is None:
            return False
        self.blocks[number] = pa
        self._hyp.machine.ram.fill(pa, BLOCK_SIZE)
        self.free[pa] = BLOCK_ORDER
        return True

    def alloc(self, order: int) -> int | None:
        """PA of ``2**order`` zeroed pages of some pool; None where no pool has them."""
        numbers = [(self.last + step) % MAX_BLOCKS for step in range(MAX_BLOCKS)]
        for number in numbers:
            base = self.blocks.get(number)
            pa = None if base is None else self._take(base, order)
            if pa is not None:
                self.last = number
                return pa
        return None

    def _take(self, base: int, order: int) -> int | None:
        fitting = [(have, pa) for pa, have in self.free.items() if base <= pa < base + BLOCK_SIZE and have >= order]
        if not fitting:
            return None
        have, pa = min(fitting)
        del self.free[pa]
        while have > order:
            have -= 1
            self.free[pa + (PAGE_SIZE << have)] = have
        self.used[pa] = order
        self._hyp.vmemmap.set_refcount(pa, 1, order)
        return pa

    def order_of(self, pa: int) -> int:
        """Order of pages that were taken; 0 for what was not."""
        return self.used.get(pa, 0)

    def put(self, pa: int) -> None:
        """Drop a reference on pages; without any they are zeroed and free again.

        Raises:
            HypBug: no pool has them: the original takes its lock a second time and waits for ever.
        """
        base = next((base for base in self.blocks.values() if base <= pa < base + BLOCK_SIZE), None)
        if base is None:
            raise HypBug(
                f"an IOMMU page at {pa:#x} is given back to no pool: kvm_iommu_reclaim_pages waits for its own lock"
            )
        if self._hyp.vmemmap.add_refcount(pa, -1):
            return
        order = self.used.pop(pa, 0)
        self._hyp.machine.ram.fill(pa, PAGE_SIZE << order)
        while order < BLOCK_ORDER and self.free.get(base + (pa - base ^ PAGE_SIZE << order)) == order:
            buddy = base + (pa - base ^ PAGE_SIZE << order)
            del self.free[buddy]
            pa, order = min(pa, buddy), order + 1
        self.free[pa] = order

    def _unused(self) -> list[int]:
        return [number for number, base in sorted(self.blocks.items()) if self.free.get(base) == BLOCK_ORDER]

    @property
    def free_pages(self) -> int:
        """Pages of the pieces of which nothing is taken."""
        return len(self._unused()) << BLOCK_ORDER

    def reclaim(self, cache: HostMemcache, target: int) -> None:
        """Give unused pieces back to the host while it wants more than one has."""
        for number in self._unused():
            if target <= 1 << BLOCK_ORDER:
                return
            pa = self.blocks[number]
            del self.blocks[number], self.free[pa]
            self._hyp.vmemmap.set_refcount(pa, 0)
            cache.push(pa, BLOCK_ORDER)
            if self._hyp.ownership.hyp_donate_host(pa >> PAGE_SHIFT, 1 << BLOCK_ORDER, origin="IOMMU block pool"):
                raise HypBug(f"the IOMMU pool cannot give {pa:#x} back: {self._hyp.ownership.last_refusal}")
            target -= 1 << BLOCK_ORDER
