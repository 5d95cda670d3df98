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
    the addresses a run sees are the same every time; after :meth:`leave` what lies below comes last. Sizes are
    remembered: freeing with a wrong order is an error that names the address, as it would corrupt a real kernel.

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
        #: Free blocks below ``floor``, for when nothing else is left.
        self._below: StateDict[int, tuple[int, ...]] = StateDict(journal, "kernel.pages.below")
        #: Untouched memory that is somebody's: (start, end), in ascending order.
        self.holes: tuple[tuple[int, int], ...] = ()
        self.floor = start

    def alloc_pages(self, order: int, zero: bool = False) -> int | None:
        """PA of a block of ``2**order`` pages, or None when memory is short or the order too large."""
        if not 0 <= order <= MAX_ORDER:
            return None
        size = PAGE_SIZE << order
        found = _pop(self._free, order) or self._fresh(size) or _pop(self._below, order)
        if found is None:
            return None
        self._orders[found] = order
        if zero:
            self._ram.fill(found, size)
        return found

    def leave(self, size: int) -> None:
        """Go on at the next multiple of ``size`` bytes; everything free below it is used last.

        What a kernel allocates once it is up lies far from what it allocated while it booted.
        """
        floor = min(-(-self.next_fresh // size) * size, self._end)
        for order, blocks in self._free.items():
            self._below[order] = (*self._below.get(order, ()), *blocks)
        self._free.clear()
        self._return_fresh(floor, self._below)
        self.next_fresh = self.floor = floor

    def reserve(self, start: int, end: int) -> bool:
        """Never give out what lies from ``start`` to ``end``; False where some of it is in use already.

        Memory that the allocator does not have in the first place is nobody's business here, but RAM below it is the kernel image.
        """
        first, last = start & -PAGE_SIZE, min(-(-end // PAGE_SIZE) * PAGE_SIZE, self._end)
        if first >= self._end or last <= self._ram.base:
            return True
        for lists in (self._free, self._below):
            for order, blocks in list(lists.items()):
                for block in blocks:
                    behind = block + (PAGE_SIZE << order)
                    if first < behind and block < last:
                        lists[order] = tuple(one for one in lists[order] if one != block)
                        self._return_gap(block, max(block, first), lists)
                        self._return_gap(min(behind, last), behind, lists)
        is_fresh = first >= self.next_fresh
        if last > self.next_fresh:
            self._add_hole(max(first, self.next_fresh), last)
        return is_fresh

    def carve(self, size: int, align: int, lowest: int, highest: int) -> int | None:
        """Reserve untouched memory from the top down.

        Args:
            size: bytes.
            align: bytes, a power of two.
            lowest: least physical address.
            highest: physical address that it ends at or below.

        Returns:
            Its physical address, or None without room.
        """
        align = max(align, PAGE_SIZE)
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        floor = max(self.next_fresh, lowest)
        pa = min(self._end, highest) - size & -align
        for start, end in reversed(self.holes):
            if pa < end and start < pa + size:
                pa = start - size & -align
        if pa < floor or size <= 0:
            return None
        self._add_hole(pa, pa + size)
        return pa

    def _add_hole(self, start: int, end: int) -> None:
        holes = sorted([*self.holes, (start, end)])
        merged = [holes[0]]
        for hole in holes[1:]:
            if hole[0] <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], hole[1]))
            else:
                merged.append(hole)
        self.holes = tuple(merged)

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
        lists = self._below if pa < self.floor else self._free
        lists[order] = (*lists.get(order, ()), pa)

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

    def _fresh(self, size: int) -> int | None:
        pa = -(-self.next_fresh // size) * size
        for start, end in self.holes:
            if pa < end and start < pa + size:
                pa = -(-end // size) * size
        if pa + size > self._end:
            return None
        # What alignment skips stays usable for smaller orders.
        self._return_fresh(pa, self._free)
        self.next_fresh = pa + size
        return pa

    def _return_fresh(self, end: int, lists: StateDict[int, tuple[int, ...]]) -> None:
        """Free what is untouched up to ``end`` and nobody's."""
        at = self.next_fresh
        for hole, behind in self.holes:
            if hole < end and at < behind:
                self._return_gap(at, hole, lists)
                at = max(at, behind)
        self._return_gap(at, end, lists)

    @staticmethod
    def _return_gap(start: int, end: int, lists: StateDict[int, tuple[int, ...]]) -> None:
        while start < end:
            order = 0
            while (
                order < MAX_ORDER
                and start % (PAGE_SIZE << (order + 1)) == 0
                and start + (PAGE_SIZE << (order + 1)) <= end
            ):
                order += 1
            lists[order] = (start, *lists.get(order, ()))
            start += PAGE_SIZE << order


def _pop(lists: StateDict[int, tuple[int, ...]], order: int) -> int | None:
    blocks = lists.get(order, ())
    if not blocks:
        return None
    lists[order] = blocks[:-1]
    return blocks[-1]
