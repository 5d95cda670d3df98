"""Devices that protected guests may be given: ``struct pkvm_device``, as far as modules see them.

The host announces them at boot from its device tree; a board without any has an empty table. Source:
arch/arm64/kvm/hyp/nvhe/device/device.c.
"""

from __future__ import annotations

from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor


@hyp_part
class Devices(State):
    """The assignable devices.

    Attributes:
        resources: the MMIO ranges ``(PA, bytes)`` of each device.
        resets: ``(callback, cookie)`` hyp VAs by device number.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.devices")
        self._hyp = hyp
        self.resources: StateList[tuple[tuple[int, int], ...]] = StateList(hyp.machine.journal)
        self.resets: StateDict[int, tuple[int, int]] = StateDict(hyp.machine.journal)

    def add(self, *resources: tuple[int, int]) -> int:
        """Announce a device with these MMIO ranges ``(PA, bytes)``; its number."""
        self.resources.append(resources)
        return len(self.resources) - 1

    def find(self, phys: int) -> int | None:
        """The device that an address belongs to."""
        for number, resources in enumerate(self.resources):
            if any(base <= phys < base + size for base, size in resources):
                return number
        return None

    def register_reset(self, phys: int, cookie: int, callback: int) -> int:
        """Set the reset handler of the device at ``phys``: 0, -ENODEV or -EBUSY."""
        number = self.find(phys)
        if number is None:
            return -ENODEV
        if number in self.resets:
            return -EBUSY
        self.resets[number] = (callback, cookie)
        return 0
