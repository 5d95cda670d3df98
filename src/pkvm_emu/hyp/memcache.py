"""``struct kvm_hyp_memcache``: pages that the host hands over as a list in the pages themselves.

The head is a physical address with the order of the block in its low 12 bits; the first word of each block is the next
head. A block goes to the hypervisor by a donation, one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.machine.pagetable import PAGE_MASK, PAGE_SHIFT

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.machine.memory import GuestRam


class HostMemcache:
    """A list of the host's, as it came in the registers of a hypercall.

    Args:
        ram: guest memory.
        head: head of the list.
        count: how many blocks it says to hold.
    """

    def __init__(self, ram: GuestRam, head: int = 0, count: int = 0) -> None:
        self._ram = ram
        self.head = head
        self.count = count

    @property
    def order(self) -> int:
        """Order of the first block."""
        return self.head & PAGE_MASK

    @property
    def first(self) -> int:
        """PA of the first block."""
        return self.head & ~PAGE_MASK

    def pop(self) -> int:
        """Take the first block off; its PA."""
        pa = self.first
        self.head = self._ram.read_u64(pa)
        self.count -= 1
        return pa

    def push(self, pa: int, order: int) -> None:
        """Put a block in front."""
        self._ram.write_u64(pa, self.head)
        self.head = pa | order
        self.count += 1


def admit(hyp: Hypervisor, cache: HostMemcache, order: int) -> int | None:
    """Take the first block of a host's list into the hypervisor.

    Returns:
        Its PA, or None where the list is empty or the host cannot donate the block.

    Raises:
        HypBug: the block has another order than expected.
    """
    if not cache.count:
        return None
    if cache.order != order:
        raise HypBug(
            f"the host gives a block of order {cache.order} at {cache.first:#x} where order {order} is expected"
        )
    if hyp.ownership.host_donate_hyp(cache.first >> PAGE_SHIFT, 1 << order, origin="host memcache"):
        return None
    return cache.pop()
