"""The host's own IOMMU core (``drivers/iommu/{iommu,iommu-sysfs}.c``): drivers register with it, and no device is behind one.

What pKVM drivers do with it is to announce their units. No bus master of the emulated machine has an ``iommus`` property, so a
client asks in vain for groups and domains.
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOSYS

from pkvm_emu.kernel.guest_access import misuse, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.machine.calling import U32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict

#: ``ops`` in ``struct iommu_device``, behind the list.
_OPS = 16


@kernel_part
class IommuDevices(State):
    """Registered units.

    Attributes:
        units: ``struct iommu_ops`` and hardware device by address of the ``struct iommu_device``.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.iommu_devices")
        self._kernel = kernel
        self.units: StateDict[int, tuple[int, int]] = StateDict(kernel.machine.journal, "kernel.iommu_devices.units")


@kernel_symbol("iommu_device_register", runs_guest=True)
def iommu_device_register(kernel: Kernel, unit: Ptr, operations: Ptr, device: Ptr) -> int:
    """Announce a unit: 0, or -EINVAL without a device."""
    units = kernel.part(IommuDevices).units
    if not device:
        return -EINVAL
    store_uint(kernel, unit + _OPS, operations, 8)
    units[unit] = (operations, device)
    return 0


@kernel_symbol("iommu_device_unregister", runs_guest=True)
def iommu_device_unregister(kernel: Kernel, unit: Ptr) -> None:
    """Take a unit away.

    Raises:
        ModuleError: it was not registered: a device's list is corrupted then.
    """
    if kernel.part(IommuDevices).units.pop(unit, None) is None:
        raise misuse(kernel, f"iommu_device_unregister({unit:#x}): that unit is not registered")


@kernel_symbol("iommu_device_sysfs_add", runs_guest=True)
def iommu_device_sysfs_add(kernel: Kernel, unit: Ptr, parent: Ptr, groups: Ptr, fmt: Ptr) -> int:
    """A unit's entry in ``/sys/class/iommu``: 0. It has no files here."""
    return 0


@kernel_symbol("iommu_device_sysfs_remove", "iommu_device_unlink", runs_guest=True)
def iommu_device_sysfs_remove(kernel: Kernel, unit: Ptr, device: Ptr) -> None:
    """Take it away."""


@kernel_symbol("iommu_device_link", runs_guest=True)
def iommu_device_link(kernel: Kernel, unit: Ptr, device: Ptr) -> int:
    """Show that a device is behind a unit; 0."""
    return 0


# Clients


@kernel_symbol("iommu_group_get", "iommu_get_domain_for_dev", "iommu_get_dma_domain", "iommu_domain_alloc")
def nothing_behind(kernel: Kernel, device: Ptr) -> int:
    """NULL: the device is behind no IOMMU, and no driver makes domains for the bus."""
    return 0


@kernel_symbol("iommu_paging_domain_alloc", "iommu_paging_domain_alloc_flags")
def iommu_paging_domain_alloc(kernel: Kernel, device: Ptr) -> int:
    """ERR_PTR(-ENODEV)."""
    return -ENODEV


@kernel_symbol("iommu_present", "device_iommu_mapped", "device_iommu_capable", "iommu_capable")
def iommu_present(kernel: Kernel, bus: Ptr) -> int:
    """No device of the bus is behind an IOMMU."""
    return False


@kernel_symbol("iommu_attach_device", "iommu_attach_group")
def iommu_attach_device(kernel: Kernel, domain: Ptr, device: Ptr) -> int:
    """-ENODEV."""
    return -ENODEV


@kernel_symbol("report_iommu_fault")
def report_iommu_fault(kernel: Kernel, domain: Ptr, device: Ptr, address: U64, flags: U32) -> int:
    """No domain has a fault handler: -ENOSYS."""
    return -ENOSYS
