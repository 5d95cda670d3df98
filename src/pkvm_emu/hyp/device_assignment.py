"""Giving devices to guests: a whole group at once, reset and cut off from memory while nobody has it.

Source: arch/arm64/kvm/hyp/nvhe/device/device.c.
"""

from __future__ import annotations

from errno import EBUSY, ENODEV, EPERM
from typing import TYPE_CHECKING

from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.machine.pagetable import PAGE_SHIFT

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.hyp.vm import Vm


class DeviceAssignment:
    """The assignable devices and who has them. All of it is in :class:`Devices`; an object is made for a call.

    Args:
        hyp: the hypervisor.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._devices = hyp.part(Devices)

    def _refuse(self, error: int, rule: str, page: int | None = None) -> int:
        return self._hyp.part(Refusals).refuse(error, rule, page)

    def map_mmio(self, machine: Vm, pfn: int, gfn: int) -> int:
        """``pkvm_host_map_guest_mmio``: the first page of a device takes its group for the VM; then the page is mapped.

        Errors: -ENODEV (no device there, no reset handler), -EBUSY (another VM has it), -EPERM, what the reset handler or the
        IOMMU driver return.
        """
        number = self._devices.find(pfn << PAGE_SHIFT)
        if number is None:
            return self._refuse(-ENODEV, "no assignable device has a register at this address")
        error = self.take(machine, number, -EBUSY)
        if error:
            return error
        return self._hyp.ownership.hyp_map_guest_mmio(machine, pfn, gfn, origin="host")

    def take(self, machine: Vm, number: int, taken: int) -> int:
        """Make sure that a VM has a device: 0, ``taken`` where another has it, or why its group cannot be assigned."""
        owner = self._devices.owners.get(number)
        if owner is None:
            return self._take_group(machine, self._devices.groups[number])
        return 0 if owner == machine.handle else self._refuse(taken, f"VM {owner:#x} has the device")

    def _take_group(self, machine: Vm, group: int) -> int:
        devices = self._devices
        members = [number for number, one in enumerate(devices.groups) if one == group]
        for number in members:
            error = self._take_one(machine, number)
            if error:
                for before in members[: members.index(number)]:
                    devices.owners.pop(before, None)
                return error
        return 0

    def _take_one(self, machine: Vm, number: int) -> int:
        devices, hyp = self._devices, self._hyp
        if number in devices.owners or devices.references.get(number):
            return self._refuse(-EPERM, "a device of the group belongs to a VM, or is being attached")
        for base, size in devices.resources[number]:
            error, _ = hyp.stage1.check_state(hyp.stage1.va_of(base), size, 0)
            if error:
                return self._refuse(error, "the hypervisor does not have all registers of the device yet", base)
        error = self._reset(number, host_to_guest=True)
        if not error:
            devices.owners[number] = machine.handle
        return error

    def _reset(self, number: int, host_to_guest: bool) -> int:
        """The module's reset handler, then the IOMMU driver's ``dev_block_dma`` for each of its endpoints."""
        from pkvm_emu.hyp.iommu import Iommu

        hyp, devices = self._hyp, self._devices
        if number not in devices.resets:
            return self._refuse(-ENODEV, "no module registered a reset handler for the device")
        callback, cookie = devices.resets[number]
        kind = hyp.generation.callbacks.get("device_reset")
        kcfi = kind.kcfi(hyp.kcfi_flavour) if kind is not None else None
        error = _int(hyp.call_module(callback, kcfi or 0, cookie, int(host_to_guest)))
        if error:
            return error
        for iommu, endpoint in devices.iommus[number]:
            error = hyp.part(Iommu).block_dma(iommu, endpoint, host_to_guest)
            if error:
                raise HypBug(
                    f"device {number} cannot be cut off at IOMMU {iommu:#x}, endpoint {endpoint:#x}: dev_block_dma returns "
                    f"{error}: WARN in pkvm_device_reset"
                )
        return 0

    def teardown(self, machine: Vm) -> None:
        """``pkvm_devices_teardown``: reset what a dying VM has, and give it back to the host."""
        devices = self._devices
        for number in [number for number, owner in sorted(devices.owners.items()) if owner == machine.handle]:
            error = self._reset(number, host_to_guest=False)
            if error:
                raise HypBug(f"devices_teardown: a reset handler for VM {machine.handle:#x} returns {error}")
            del devices.owners[number]
            for base, size in devices.resources[number]:
                self._hyp.ownership.return_from_guest(base, size, machine.handle, origin="finalize_teardown_vm")

    # What the IOMMU core asks

    def get_context(self, iommu: int, endpoint: int, guest: Vm | None) -> int:
        """Keep a device with who has it for as long as it is being attached: 0, or -EPERM where somebody else has it."""
        number = self._devices.find_by_iommu(iommu, endpoint)
        if number is None:
            return 0
        owner = self._devices.owners.get(number)
        if owner != (None if guest is None else guest.handle):
            return self._refuse(-EPERM, "the device belongs to " + ("the host" if owner is None else f"VM {owner:#x}"))
        self._devices.references[number] = self._devices.references.get(number, 0) + 1
        return 0

    def put_context(self, iommu: int, endpoint: int) -> None:
        """End :meth:`get_context`."""
        number = self._devices.find_by_iommu(iommu, endpoint)
        if number is not None:
            self._devices.references[number] -= 1


def _int(word: int) -> int:
    return ((word & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)
