"""IOMMUs as guests see them: which physical endpoints the host put behind them, before the VM was made.

Source: arch/arm64/kvm/hyp/nvhe/iommu/pviommu-host.c (android16).
"""

from __future__ import annotations

from errno import EBUSY, EEXIST, EINVAL, ENOENT
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

MAX_PVIOMMUS, MAX_ENTRIES = 32, 16


class Route(NamedTuple):
    """An endpoint: what the guest calls it, the physical IOMMU, and what it is called there."""

    vsid: int
    iommu: int
    sid: int


class PvIommu(NamedTuple):
    """One IOMMU of a guest: the host's VM (kernel VA of its ``struct kvm``), its id there, its endpoints, and the handle of
    the VM once that was made (0 before: the host may still change it).
    """

    kvm: int
    id: int
    routes: tuple[Route, ...] = ()
    handle: int = 0


@hyp_part
class PvIommus(State):
    """The table of one hypervisor.

    Attributes:
        slots: the IOMMUs by place in the table.
        lock_is_lost: a guest's call released the lock of the guests' domains without having it: the next one waits for ever.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.pviommu")
        self.slots: StateDict[int, PvIommu] = StateDict(hyp.machine.journal)
        self.lock_is_lost = False

    def attach(self, kvm: int, number: int) -> int:
        """Give a VM that is not made yet an IOMMU with id ``number``: 0, -EINVAL (no VM), -EBUSY (32 are there)."""
        if not kvm:
            return -EINVAL
        place = next((place for place in range(MAX_PVIOMMUS) if place not in self.slots), None)
        if place is None:
            return -EBUSY
        self.slots[place] = PvIommu(kvm, number)
        return 0

    def add_route(self, kvm: int, number: int, route: Route) -> int:
        """Put an endpoint behind it: 0, -ENOENT (no such IOMMU, or the VM is made), -EBUSY (16 are there), -EEXIST."""
        for place, one in sorted(self.slots.items()):
            if one.handle or (one.kvm, one.id) != (kvm, number):
                continue
            if len(one.routes) == MAX_ENTRIES:
                return -EBUSY
            if any(known.vsid == route.vsid for known in one.routes):
                return -EEXIST
            self.slots[place] = one._replace(routes=(*one.routes, route))
            return 0
        return -ENOENT

    def finalise(self, kvm: int, handle: int) -> None:
        """The VM was made: its IOMMUs are as they are."""
        for place, one in list(self.slots.items()):
            if kvm and one.kvm == kvm and not one.handle:
                self.slots[place] = one._replace(handle=handle)

    def release(self, handle: int) -> None:
        """The VM is gone, and its IOMMUs with it."""
        for place in [place for place, one in self.slots.items() if one.handle == handle]:
            del self.slots[place]

    def route(self, handle: int, number: int, vsid: int) -> Route | None:
        """The endpoint that a guest means; None where it has no such."""
        for _, one in sorted(self.slots.items()):
            if one.handle == handle and one.id == number:
                return next((route for route in one.routes if route.vsid == vsid), None)
        return None
