"""The host's own IOMMU core (``drivers/iommu/{iommu,iommu-sysfs}.c``): units of drivers, and the devices behind them.

pKVM drivers announce their units here. Behind them are the bus masters of the device tree that are configured
(:mod:`pkvm_emu.kernel.iommu_clients`); other devices are behind none and ask in vain for groups and domains.
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOSYS

from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.exports.device_match import fwnode_of
from pkvm_emu.kernel.guest_access import load_u32, misuse, store_uint
from pkvm_emu.kernel.iommu_clients import IommuClients, IommuUnits
from pkvm_emu.kernel.iommu_domains import structs
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import S32, U32, U64, Ptr

#: ``ops`` and ``fwnode`` in ``struct iommu_device``, behind the list.
_OPS, _FWNODE = 16, 24


@kernel_symbol("iommu_device_register", runs_guest=True)
def iommu_device_register(kernel: Kernel, unit: Ptr, operations: Ptr, device: Ptr) -> int:
    """Announce a unit: 0, or -EINVAL without a device."""
    units = kernel.part(IommuUnits).units
    if not device:
        return -EINVAL
    store_uint(kernel, unit + _OPS, operations, 8)
    store_uint(kernel, unit + _FWNODE, fwnode_of(kernel, device), 8)
    units[unit] = (operations, device)
    return 0


@kernel_symbol("iommu_device_unregister", runs_guest=True)
def iommu_device_unregister(kernel: Kernel, unit: Ptr) -> None:
    """Take a unit away; devices that are behind it leave it first.

    Raises:
        ModuleError: it was not registered: a device's list is corrupted then.
    """
    kernel.part(IommuClients).release_unit(unit)
    if kernel.part(IommuUnits).units.pop(unit, None) is None:
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


# Drivers and the devices behind their units


@kernel_symbol("iommu_fwspec_add_ids", runs_guest=True)
def iommu_fwspec_add_ids(kernel: Kernel, device: Ptr, ids: Ptr, count: S32) -> int:
    """Note numbers by which a unit knows a device: 0, or -EINVAL for a device that is behind none."""
    numbers = [load_u32(kernel, ids + 4 * index) for index in range(count)]
    return kernel.part(IommuClients).add_ids(kernel.part(Devices).at(device), numbers)


@kernel_symbol("iommu_fwspec_free", runs_guest=True)
def iommu_fwspec_free(kernel: Kernel, device: Ptr) -> None:
    """Forget those numbers."""
    kernel.part(IommuClients).free_fwspec(kernel.part(Devices).at(device))


@kernel_symbol("dev_iommu_priv_set", runs_guest=True)
def dev_iommu_priv_set(kernel: Kernel, device: Ptr, data: Ptr) -> None:
    """What a driver keeps about a device; inline code reads it.

    Raises:
        ModuleError: the device is behind no unit: the kernel writes through a NULL pointer.
    """
    client = kernel.part(IommuClients).client_of(kernel.part(Devices).at(device))
    if not client:
        raise misuse(kernel, f"dev_iommu_priv_set({device:#x}): the device is behind no IOMMU")
    store_uint(kernel, client + structs(kernel).priv, data, 8)


@kernel_symbol("generic_device_group", runs_guest=True)
def generic_device_group(kernel: Kernel, device: Ptr) -> int:
    """A group of its own for a device."""
    return kernel.part(IommuClients).make_group()


@kernel_symbol("iommu_alloc_resv_region", runs_guest=True)
def iommu_alloc_resv_region(kernel: Kernel, start: U64, size: U64, prot: S32, kind: U32, gfp: U32) -> int:
    """A ``struct iommu_resv_region``; NULL without memory."""
    rows, memory = structs(kernel), kernel.memory
    region = kernel.part(Slab).kmalloc(rows.region_size, gfp)
    if not region:
        return 0
    memory.write(region, bytes(rows.region_size))
    for link in (0, 8):
        memory.write_u64(region + link, region)
    memory.write_u64(region + rows.region_start, start)
    memory.write_u64(region + rows.region_length, size)
    memory.write_u32(region + rows.region_prot, prot & 0xFFFF_FFFF)
    memory.write_u32(region + rows.region_type, kind)
    return region


@kernel_symbol("iommu_dma_get_resv_regions", runs_guest=True)
def iommu_dma_get_resv_regions(kernel: Kernel, device: Ptr, regions: Ptr) -> None:
    """Add what the device tree reserves of a device's addresses: nothing, as no memory region has ``iommu-addresses``.

    Raises:
        ModuleError: one has; that is not modelled.
    """
    from pkvm_emu.kernel.exports.of_references import references

    node = kernel.part(Devices).at(device).node
    if node is None:
        return
    for one in references(kernel, node, "memory-region", None, 0):
        if one.node is not None and one.node.value("iommu-addresses") is not None:
            raise misuse(kernel, f"{one.node.path} has iommu-addresses, which this kernel does not serve")


# Clients


@kernel_symbol("iommu_group_get", runs_guest=True)
def iommu_group_get(kernel: Kernel, device: Ptr) -> int:
    """The group of a device; NULL where it is behind no unit."""
    return kernel.part(IommuClients).members.get(device, 0)


@kernel_symbol("iommu_get_domain_for_dev", "iommu_get_dma_domain", runs_guest=True)
def iommu_get_domain_for_dev(kernel: Kernel, device: Ptr) -> int:
    """The domain that a device is in; NULL where it is behind no unit."""
    return kernel.part(IommuClients).domain_of(device)


@kernel_symbol("iommu_domain_alloc")
def iommu_domain_alloc(kernel: Kernel, bus: Ptr) -> int:
    """NULL: no driver makes domains for a whole bus."""
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
