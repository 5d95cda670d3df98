"""The kernel's page allocator: naturally aligned blocks of 2^order pages, as ``alloc_pages`` gives them."""

from __future__ import annotations

from pkvm_emu.errors import ModuleError
from pkvm_emu.machine.memory import GuestRam
from pkvm_emu.machine.pagetable import OutOfTablePages
from pkvm_emu.machine.state import Journal, State, StateDict

PAGE_SIZE = 4096
MAX_ORDER = 10


class PageAllocator(State):
    """Free RAM from ``start`` to ``end``.

    Blocks come from freed ones first (the last freed of that order), then from untouched memory in ascending order, so
    the addresses a run sees are the same every time. Sizes are remembered: freeing with a wrong order is an error that
    names the address, as it would corrupt a real kernel.

    Args:
        journal: owner of the state.
        ram: guest memory; pages are zeroed on request.
        start: PA of the first free page.
        end: PA behind the last one.
    """

    def __init__(self, journal: Journal, ram: GuestRam, start: int, end: int) -> None:
        super().__init__(journal, "kernel.pages")
        self._ram = ram
        self._end = end
        self.next_fresh = start
        self._orders: StateDict[int, int] = StateDict(journal, "kernel.pages.orders")
        self._free: StateDict[int, tuple[int, ...]] = StateDict(journal, "kernel.pages.free")

    def alloc_pages(self, order: int, zero: bool = False) -> int | None:
        """PA of a block of ``2**order`` pages, or None when memory is short or the order too large."""
        if not 0 <= order <= MAX_ORDER:
            return None
        size = PAGE_SIZE << order
        freed = self._free.get(order, ())
        if freed:
            pa = freed[-1]
            self._free[order] = freed[:-1]
        else:
            pa = -(-self.next_fresh // size) * size
            if pa + size > self._end:
                return None
            # What alignment skips stays usable for smaller orders.
            self._return_gap(self.next_fresh, pa)
            self.next_fresh = pa + size
        self._orders[pa] = order
        if zero:
            self._ram.fill(pa, size)
        return pa

    def free_pages(self, pa: int, order: int) -> None:
        """Give a block back.

        Raises:
            ModuleError: the block was not allocated with that order.
        """
        known = self._orders.get(pa)
        if known != order:
            what = "was not allocated" if known is None else f"was allocated with order {known}"
            raise ModuleError(f"free_pages of {pa:#x} with order {order}: the block {what}")
        del self._orders[pa]
        self._free[order] = (*self._free.get(order, ()), pa)

    def split(self, pa: int) -> None:
        """``split_page``: an allocated block becomes single pages that are freed one by one."""
        order = self._orders[pa]
        for page in range(pa, pa + (PAGE_SIZE << order), PAGE_SIZE):
            self._orders[page] = 0

    def order_of(self, pa: int) -> int | None:
        """The order of the allocated block that starts at ``pa``."""
        return self._orders.get(pa)

    def alloc(self) -> int:
        """A zeroed page for a page table."""
        pa = self.alloc_pages(0, zero=True)
        if pa is None:
            raise OutOfTablePages("the kernel has no page left for its page tables")
        return pa

    def free(self, pa: int) -> None:
        """Give a page-table page back."""
        self.free_pages(pa, 0)

    def _return_gap(self, start: int, end: int) -> None:
        while start < end:
            order = 0
            while order < MAX_ORDER and start % (PAGE_SIZE << (order + 1)) == 0 and start + (PAGE_SIZE << (order + 1)) <= end:
                order += 1
            self._free[order] = (start, *self._free.get(order, ()))
            start += PAGE_SIZE << order
