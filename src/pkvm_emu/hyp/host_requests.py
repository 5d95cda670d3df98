"""What the hypervisor asks of the host with the result of a hypercall: ``struct kvm_hyp_req``, one slot a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

TYPE_MEM = 1
DEST_HYP_ALLOC, DEST_HYP_IOMMU = 1, 3
REQUEST_SIZE = 24
_NR_PAGES, _SIZE = 12, 16


class HostRequest(NamedTuple):
    """A request: its type, who wants the memory, how many pieces, how many bytes each."""

    type: int
    dest: int
    pieces: int
    size: int

    @classmethod
    def parse(cls, raw: bytes) -> HostRequest:
        """From the 24 bytes of ``struct kvm_hyp_req``."""
        return cls(
            raw[0],
            raw[8],
            int.from_bytes(raw[_NR_PAGES : _NR_PAGES + 4], "little", signed=True),
            int.from_bytes(raw[_SIZE : _SIZE + 4], "little", signed=True),
        )

    @property
    def registers(self) -> tuple[int, int]:
        """x2 and x3 of the hypercall's result."""
        return self.type | self.dest << 8, self.pieces & 0xFFFF_FFFF | (self.size & 0xFFFF_FFFF) << 32


class MapRequest(NamedTuple):
    """A request of a guest's call: that the host maps ``size`` bytes of the guest's memory at ``ipa``."""

    ipa: int
    size: int


@hyp_part
class HostRequests(State):
    """The slots of one hypervisor."""

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.requests")
        self.slots: StateDict[int, HostRequest | None] = StateDict(hyp.machine.journal)

    def pending(self, cpu: int) -> HostRequest | None:
        """The request that waits on a CPU."""
        return self.slots.get(cpu)

    def leave(self, cpu: int, request: HostRequest) -> None:
        """Put a request into a CPU's slot."""
        self.slots[cpu] = request

    def take(self, cpu: int) -> tuple[int, int]:
        """Empty a CPU's slot into x2 and x3 of a hypercall (zeros where nothing waits)."""
        request = self.slots.get(cpu)
        self.slots[cpu] = None
        return (0, 0) if request is None else request.registers
