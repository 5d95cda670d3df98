"""A page pool filled by the host: blocks that came through a memcache, kept as they came.

Blocks are neither split nor merged, so a request for a small block may get a larger one. Source of the behaviour:
arch/arm64/kvm/hyp/nvhe/page_alloc.c for 'external' pages.
"""

from __future__ import annotations

from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug, HypFault
from pkvm_emu.hyp.memcache import HostMemcache, admit
from pkvm_emu.machine.pagetable import PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_MAX_SHIFT = 63


class ExternalPool(State):
    """One pool.

    Args:
        hyp: the hypervisor.
        name: for messages and the digest.
        max_order: largest block it takes, as an order.

    Attributes:
        ready: it was initialised; what is used before that is a list of NULL pointers.
        free: PAs of the free blocks by order, the next one first.
        orders: order of every block that the pool knows.
    """

    def __init__(self, hyp: Hypervisor, name: str, max_order: int) -> None:
        journal = hyp.machine.journal
        super().__init__(journal, f"hyp.pool.{name}")
        self._hyp = hyp
        self._name = name
        self._max_order = max_order
        self.ready = False
        self.free: StateDict[int, tuple[int, ...]] = StateDict(journal)
        self.orders: StateDict[int, int] = StateDict(journal)

    @property
    def free_pages(self) -> int:
        """Pages in free blocks."""
        return sum(len(blocks) << order for order, blocks in self.free.items())

    def order_of(self, pa: int) -> int:
        """Order of a block of the pool; 0 for what is none."""
        return self.orders.get(pa, 0)

    def alloc(self, order: int) -> int | None:
        """PA of a block of at least ``2**order`` pages, zeroed; None when there is none.

        Raises:
            HypFault: the pool was never initialised.
        """
        if not self.ready:
            if order:
                return None
            raise HypFault(
                f"the {self._name} pool is used before an IOMMU driver was initialised (NULL list)", 0, False
            )
        for candidate in range(order, self._max_order + 1):
            blocks = self.free.get(candidate, ())
            if blocks:
                self.free[candidate] = blocks[1:]
                self._hyp.vmemmap.set_refcount(blocks[0], 1, candidate)
                return blocks[0]
        return None

    def put(self, pa: int) -> None:
        """Drop a reference on a block; without any it is zeroed and free again.

        Raises:
            HypBug: it has no reference, or an order that the pool does not take.
            HypFault: the pool was never initialised.
        """
        order = self.order_of(pa)
        if order > self._max_order:
            raise HypBug(
                f"a block of order {order} at {pa:#x} is given to the {self._name} pool, which takes {self._max_order}"
            )
        if self._hyp.vmemmap.add_refcount(pa, -1):
            return
        if not self.ready:
            raise HypFault(f"the {self._name} pool is used before an IOMMU driver was initialised (NULL list)", 0, True)
        self._hyp.machine.ram.fill(pa, PAGE_SIZE << order)
        self.free[order] = (*self.free.get(order, ()), pa)

    def refill(self, cache: HostMemcache) -> int:
        """Take all blocks of a cache of the host: 0, or -EINVAL at the first that cannot be taken."""
        while cache.count:
            order = cache.order
            if order > _MAX_SHIFT:
                return -EINVAL
            pa = admit(self._hyp, cache, order)
            if pa is None:
                return -EINVAL
            self.add(pa, order)
        return 0

    def add(self, pa: int, order: int) -> None:
        """Take a block that the hypervisor owns."""
        self.orders[pa] = order
        self._hyp.vmemmap.set_refcount(pa, 1, order)
        self.put(pa)

    def reclaim(self, cache: HostMemcache, pages: int) -> int:
        """Give free blocks of ``pages`` pages back to the host: 0, or -ENOMEM when the pool is empty before that."""
        while pages > 0:
            pa = self.alloc(0)
            if pa is None:
                return -ENOMEM
            order = self.order_of(pa)
            pages -= 1 << order
            del self.orders[pa]
            self._hyp.vmemmap.set_refcount(pa, 0)
            cache.push(pa, order)
            if self._hyp.ownership.hyp_donate_host(pa >> PAGE_SHIFT, 1 << order, origin=f"{self._name} pool"):
                raise HypBug(f"the {self._name} pool cannot give {pa:#x} back: {self._hyp.ownership.last_refusal}")
        return 0
