"""Devices that protected guests may be given: ``struct pkvm_device``, as far as modules see them.

The host announces them at boot, from its device tree. Source:
arch/arm64/kvm/hyp/nvhe/device/device.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING

from pkvm_emu.abi.structs import PKVM_DEVICE
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

#: Where EL1 stores ``registered_devices`` and how many they are, from the start of the hypervisor's part of the kernel image.
DEVICES_OFFSET = 0x20_0008
MAX_RESOURCES = MAX_IOMMUS = 32
#: Bytes of a resource (base, size) and of what a device is called at an IOMMU (id, endpoint).
PAIR = 16


@hyp_part
class Devices(State):
    """The assignable devices.

    Attributes:
        resources: the MMIO ranges ``(PA, bytes)`` of each device.
        iommus: what it is called at IOMMUs, ``(IOMMU id, endpoint)`` each, of each device.
        groups: the group of each device: devices of one group go to a guest together.
        owners: handle of the VM that has a device, by device number.
        references: how many operations of the IOMMU core use a device now, by device number.
        resets: ``(callback, cookie)`` hyp VAs by device number.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.devices")
        self._hyp = hyp
        self.resources: StateList[tuple[tuple[int, int], ...]] = StateList(hyp.machine.journal)
        self.iommus: StateList[tuple[tuple[int, int], ...]] = StateList(hyp.machine.journal)
        self.groups: StateList[int] = StateList(hyp.machine.journal)
        self.owners: StateDict[int, int] = StateDict(hyp.machine.journal)
        self.references: StateDict[int, int] = StateDict(hyp.machine.journal)
        self.resets: StateDict[int, tuple[int, int]] = StateDict(hyp.machine.journal)

    def add(self, *resources: tuple[int, int], iommus: Sequence[tuple[int, int]] = (), group: int | None = None) -> int:
        """Announce a device; its number.

        Args:
            resources: its MMIO ranges, ``(PA, bytes)`` each.
            iommus: ``(id of the IOMMU, endpoint there)`` each.
            group: devices of the same group go to a guest together; None: a group of its own.
        """
        self.resources.append(resources)
        self.iommus.append(tuple(iommus))
        self.groups.append(-len(self.resources) if group is None else group)
        return len(self.resources) - 1

    def init(self) -> int:
        """Take over the host's table of devices: 0, or what its donation returns, and then there are none."""
        hyp, at = self._hyp, self._hyp._image_pa + DEVICES_OFFSET
        table, count = (hyp.machine.ram.read_u64(at + 8 * word) for word in range(2))
        if not count:
            return 0
        pages = -(-count * PKVM_DEVICE.size // PAGE_SIZE)
        error = hyp.ownership.host_donate_hyp(hyp.stage1.pa_of(table) >> PAGE_SHIFT, pages, origin="devices_init")
        if error:
            return error
        for number in range(count):
            data = hyp.load(table + number * PKVM_DEVICE.size, PKVM_DEVICE.size, "struct pkvm_device")
            resources, iommus, group = (
                int.from_bytes(data[at : at + 4], "little")
                for at in (PKVM_DEVICE.offset(name) for name in ("nr_resources", "nr_iommus", "group_id"))
            )
            self.add(
                *_pairs(data, 0, resources), iommus=_pairs(data, PKVM_DEVICE.offset("iommus"), iommus), group=group
            )
        return 0

    def find(self, phys: int) -> int | None:
        """The device that an address belongs to."""
        for number, resources in enumerate(self.resources):
            if any(base <= phys < base + size for base, size in resources):
                return number
        return None

    def find_by_iommu(self, iommu: int, endpoint: int) -> int | None:
        """The device that has this endpoint of an IOMMU."""
        return next((number for number, ids in enumerate(self.iommus) if (iommu, endpoint) in ids), None)

    def register_reset(self, phys: int, cookie: int, callback: int) -> int:
        """Set the reset handler of the device at ``phys``: 0, -ENODEV or -EBUSY."""
        number = self.find(phys)
        if number is None:
            return -ENODEV
        if number in self.resets:
            return -EBUSY
        self.resets[number] = (callback, cookie)
        return 0


def _pairs(data: bytes, start: int, count: int) -> list[tuple[int, int]]:
    """So many pairs of 64-bit words, no more than a device can have."""
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(start, start + PAIR * MAX_RESOURCES, 8)]
    return list(zip(words[::2], words[1::2], strict=True))[:count]
