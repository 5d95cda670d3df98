"""Devices behind IOMMUs of the host's own core: which unit they are behind, their group, their default domain, their DMA addresses.

A driver registers its units (:class:`IommuUnits`); a device whose node has ``iommus`` is then configured as when its own driver is
about to be probed: the driver of the unit translates the specifier, takes the device in, names its group, and makes and attaches
the default domain. All of that is the driver's code, in the guest. A DMA of the device goes to addresses of that domain. Sources:
``drivers/iommu/{iommu,of_iommu,dma-iommu}.c`` of android15-6.6 and android16-6.12.
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import to_signed
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.devicetree.layouts import NODE
from pkvm_emu.kernel.iommu_domains import CACHE, DOMAIN_DMA, DOMAIN_IDENTITY, READ, WRITE, IommuDomains, structs
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.devicetree.devices import Device
    from pkvm_emu.kernel.kernel import Kernel

_GFP_KERNEL = 0xCC0
_INFO, _WARNING = 6, 4
_GROUP_SIZE, _ARGS_SIZE = 512, 80
_DIRECT, _DIRECT_RELAXABLE, _SW_MSI = 0, 1, 4
_PLATFORM_MASK = (1 << 32) - 1
_ERROR_POINTER = (1 << 64) - 4095


class Mapping(NamedTuple):
    """What a driver of a device has mapped for DMA: the address that the device uses, and how much the core mapped from where."""

    address: int
    start: int
    size: int


@kernel_part
class IommuUnits(State):
    """Registered units.

    Attributes:
        units: ``struct iommu_ops`` and hardware device by address of the ``struct iommu_device``.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.iommu_devices")
        self.units: StateDict[int, tuple[int, int]] = StateDict(kernel.machine.journal, "kernel.iommu_devices.units")


@kernel_part
class IommuClients(State):
    """Devices behind units.

    Args:
        kernel: whose devices.

    Attributes:
        groups: number of a group by the address of its ``struct iommu_group``.
        members: the group of a device.
        defaults: the default domain of a group.
        units: the ``struct iommu_device`` that a device is behind.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.iommu_clients")
        self._kernel = kernel
        self.groups: StateDict[int, int] = StateDict(journal, "kernel.iommu_clients.groups")
        self.members: StateDict[int, int] = StateDict(journal, "kernel.iommu_clients.members")
        self.defaults: StateDict[int, int] = StateDict(journal, "kernel.iommu_clients.defaults")
        self.units: StateDict[int, int] = StateDict(journal, "kernel.iommu_clients.units")

    # Configuration

    def configure(self, device: Device) -> int:
        """``of_iommu_configure``: put a device behind the units that its node names.

        Returns:
            0, -ENODEV (no ``iommus``, or no driver has registered the unit), or what the driver refused with.
        """
        if self._fwspec(device):
            return 0
        result = self._translate(device)
        if result:
            self.free_fwspec(device)
            return result
        return self._probe(device)

    def _translate(self, device: Device) -> int:
        from pkvm_emu.kernel.exports.of_references import references

        kernel = self._kernel
        if device.node is None or device.node.value("iommus") is None:
            return -ENODEV
        for one in references(kernel, device.node, "iommus", "#iommu-cells", -1):
            if one.node is None or not one.node.tree.is_available:
                return -ENODEV
            operations = self._operations_of(one.node.address + NODE.fwnode)
            if not operations:
                return -ENODEV
            result = self._init_fwspec(device, one.node.address + NODE.fwnode)
            function = self._operation(operations, "of_xlate")
            if result or not function:
                return result or -ENODEV
            arguments = self._allocate(_ARGS_SIZE)
            kernel.memory.write_u64(arguments, one.node.address)
            kernel.memory.write_u32(arguments + 8, len(one.arguments))
            for index, value in enumerate(one.arguments):
                kernel.memory.write_u32(arguments + 12 + 4 * index, value)
            result = kernel.call_s32(function, device.address, arguments)
            kernel.part(Slab).kfree(arguments)
            if result:
                return result
        return 0

    def _init_fwspec(self, device: Device, fwnode: int) -> int:
        memory, rows = self._kernel.memory, structs(self._kernel)
        present = self._fwspec(device)
        if present:
            other = memory.read_u64(present + rows.fwspec_fwnode)
            return 0 if self._operations_of(other) == self._operations_of(fwnode) else -EINVAL
        client = self._client(device)
        fwspec = self._allocate(rows.fwspec_size + 4)
        memory.write_u64(fwspec + rows.fwspec_fwnode, fwnode)
        if rows.fwspec_ops is not None:
            memory.write_u64(fwspec + rows.fwspec_ops, self._operations_of(fwnode))
        memory.write_u64(client + rows.fwspec, fwspec)
        return 0

    def add_ids(self, device: Device, ids: list[int]) -> int:
        """``iommu_fwspec_add_ids``: 0, -EINVAL where the device is behind no unit."""
        memory, rows, slab = self._kernel.memory, structs(self._kernel), self._kernel.part(Slab)
        fwspec = self._fwspec(device)
        if not fwspec:
            return -EINVAL
        count = memory.read_u32(fwspec + rows.fwspec_count)
        if count + len(ids) > 1:
            old = memory.read(fwspec, rows.fwspec_size + 4 * max(count, 1))
            slab.kfree(fwspec)
            fwspec = self._allocate(rows.fwspec_size + 4 * (count + len(ids)))
            memory.write(fwspec, old)
            memory.write_u64(self._client(device) + rows.fwspec, fwspec)
        for index, number in enumerate(ids):
            memory.write_u32(fwspec + rows.fwspec_ids + 4 * (count + index), number)
        memory.write_u32(fwspec + rows.fwspec_count, count + len(ids))
        return 0

    def free_fwspec(self, device: Device) -> None:
        """``iommu_fwspec_free``"""
        fwspec = self._fwspec(device)
        if fwspec:
            self._kernel.part(Slab).kfree(fwspec)
            self._kernel.memory.write_u64(self._client(device) + structs(self._kernel).fwspec, 0)

    # Probe and release

    def _probe(self, device: Device) -> int:
        kernel, rows = self._kernel, structs(self._kernel)
        operations = self._operations_of(kernel.memory.read_u64(self._fwspec(device) + rows.fwspec_fwnode))
        client = self._client(device)
        unit = kernel.call(self._operation(operations, "probe_device"), device.address)
        if unit >= _ERROR_POINTER:
            self._free_client(device)
            return to_signed(unit)
        kernel.memory.write_u64(client + rows.unit, unit)
        group = kernel.call(self._operation(operations, "device_group"), device.address)
        if not group:
            warn(kernel, "drivers/iommu/iommu.c iommu_init_device")
        if not group or group >= _ERROR_POINTER:
            self._call(operations, "release_device", device.address)
            self._free_client(device)
            return to_signed(group) if group else -EINVAL
        self.members[device.address], self.units[device.address] = group, unit
        self._set_group(device, group)
        kernel.memory.write_u32(client + rows.max_pasids, self._max_pasids(device, unit))
        self._say(device, f"Adding to iommu group {self.groups.get(group, 0)}")
        result = self._join(device, group, operations)
        if result:
            self._leave(device)
            return result
        self._call(operations, "probe_finalize", device.address)
        return 0

    def _max_pasids(self, device: Device, unit: int) -> int:
        kernel = self._kernel
        bits = device.node.tree.cell("pasid-num-bits", 0) if device.node is not None else 0
        most = kernel.memory.read_u32(unit + structs(kernel).unit_max_pasids)
        return min(1 << bits if bits else 0, most)

    def _join(self, device: Device, group: int, operations: int) -> int:
        """Into the default domain of the group, which its first device decides about."""
        domains = self._kernel.part(IommuDomains)
        domain = self.defaults.get(group)
        if domain is None:
            made = self._make_default(device, operations)
            if made >= _ERROR_POINTER:
                return to_signed(made)
            domain = self.defaults[group] = made
        failed = self._reserve_regions(device, domain, operations)
        result = self._kernel.call_s32(domains.operation(domain, "attach_dev"), domain, device.address)
        if result:
            warn(self._kernel, "drivers/iommu/iommu.c iommu_setup_default_domain")
            return result
        # Some drivers map only where a device is attached.
        for start, size, prot in failed:
            result = result or domains.map(domain, start, start, size, prot, _GFP_KERNEL)
        return result

    def _make_default(self, device: Device, operations: int) -> int:
        """The default domain, or an ERR_PTR: of the type that the driver asks for, else of the command line's."""
        kernel = self._kernel
        given = self._operation(operations, "default_domain")
        if given:
            return given
        passthrough = kernel.command_line.get("iommu.passthrough", "0") in ("1", "y", "Y", "on")
        usual = DOMAIN_IDENTITY if passthrough else DOMAIN_DMA
        wanted = 0
        if self._operation(operations, "def_domain_type"):
            wanted = kernel.call_s32(self._operation(operations, "def_domain_type"), device.address)
        if wanted:
            return self._make(device, operations, wanted)
        domain = self._make(device, operations, usual)
        if domain < _ERROR_POINTER or usual == DOMAIN_DMA:
            return domain if domain < _ERROR_POINTER else -EINVAL & (1 << 64) - 1
        domain = self._make(device, operations, DOMAIN_DMA)
        if domain < _ERROR_POINTER:
            name = self.groups.get(self.members[device.address], 0)
            text = f"Failed to allocate default IOMMU domain of type {usual} for group {name} - Falling back to IOMMU_DOMAIN_DMA"
            kernel.log.write(f"iommu: {text}", _WARNING)
        return domain

    def _make(self, device: Device, operations: int, kind: int) -> int:
        kernel, rows = self._kernel, structs(self._kernel)
        memory = kernel.memory
        identity = self._operation(operations, "identity_domain")
        if kind == DOMAIN_IDENTITY and identity:
            return identity
        if kind & 1 and self._operation(operations, "domain_alloc_paging"):
            domain = kernel.call(self._operation(operations, "domain_alloc_paging"), device.address)
        elif self._operation(operations, "domain_alloc"):
            domain = kernel.call(self._operation(operations, "domain_alloc"), kind)
        else:
            return -EOPNOTSUPP & (1 << 64) - 1
        if not domain or domain >= _ERROR_POINTER:
            return domain or -ENOMEM & (1 << 64) - 1
        memory.write_u32(domain + rows.domain_type, kind)
        if rows.domain_owner is not None:
            memory.write_u64(domain + rows.domain_owner, operations)
        for offset, member in (
            (rows.domain_pgsize_bitmap, "pgsize_bitmap"),
            (rows.domain_operations, "default_domain_ops"),
        ):
            if not memory.read_u64(domain + offset):
                memory.write_u64(domain + offset, memory.read_u64(operations + rows.ops[member]))
        return domain

    def _reserve_regions(self, device: Device, domain: int, operations: int) -> list[tuple[int, int, int]]:
        """Map what firmware uses one to one, and keep its addresses, and others that the driver names, from being given out.

        Returns:
            Start, bytes and protection of what could not be mapped yet.
        """
        failed: list[tuple[int, int, int]] = []
        kernel, rows, domains = self._kernel, structs(self._kernel), self._kernel.part(IommuDomains)
        memory, slab, head = kernel.memory, kernel.part(Slab), self._allocate(16)
        memory.write_u64(head, head)
        memory.write_u64(head + 8, head)
        self._call(operations, "get_resv_regions", device.address, head)
        at = memory.read_u64(head)
        while at != head:
            start, size = (memory.read_u64(at + offset) for offset in (rows.region_start, rows.region_length))
            kind = memory.read_u32(at + rows.region_type)
            if domains.kind(domain) == DOMAIN_DMA and kind != _SW_MSI:
                prot = memory.read_u32(at + rows.region_prot)
                if kind in (_DIRECT, _DIRECT_RELAXABLE) and domains.map(domain, start, start, size, prot, _GFP_KERNEL):
                    failed.append((start, size, prot))
                domains.reserve(domain, start, size)
            following = memory.read_u64(at)
            slab.kfree(at)
            at = following
        slab.kfree(head)
        return failed

    def release_unit(self, unit: int) -> None:
        """The unit is unregistered: its devices leave it."""
        for address in [device for device, own in self.units.items() if own == unit]:
            from pkvm_emu.kernel.devicetree.devices import Devices

            device = self._kernel.part(Devices).by_address[address]
            self._say(device, f"Removing from iommu group {self.groups.get(self.members[address], 0)}")
            self._leave(device)

    def _leave(self, device: Device) -> None:
        """``iommu_deinit_device``"""
        kernel, rows = self._kernel, structs(self._kernel)
        operations = kernel.memory.read_u64(self.units[device.address] + rows.unit_ops)
        release = self._operation(operations, "release_domain")
        if release:
            kernel.call(kernel.part(IommuDomains).operation(release, "attach_dev"), release, device.address)
        self._call(operations, "release_device", device.address)
        group = self.members.pop(device.address)
        del self.units[device.address]
        if group not in self.members.values():
            domain = self.defaults.pop(group, None)
            if domain is not None:
                kernel.part(IommuDomains).forget(domain)
            self.groups.pop(group, None)
            kernel.part(Slab).kfree(group)
        self._set_group(device, 0)
        self._free_client(device)

    # What is asked about devices

    def make_group(self) -> int:
        """``iommu_group_alloc``: a group with the lowest free number."""
        group, taken = self._allocate(_GROUP_SIZE), set(self.groups.values())
        self.groups[group] = next(number for number in range(len(taken) + 1) if number not in taken)
        return group

    def domain_of(self, device: int) -> int:
        """The domain that a device (its address) is in; 0 where it is behind no unit."""
        return self.defaults.get(self.members.get(device, 0), 0)

    # DMA

    def map(self, device: Device, pa: int, size: int, prot: int) -> Mapping | None:
        """What a DMA mapping of memory does: the device's own address for it; None where it gets none.

        Args:
            device: who reads or writes.
            pa: the memory.
            size: bytes.
            prot: :data:`READ`, :data:`WRITE` of :mod:`pkvm_emu.kernel.iommu_domains`.
        """
        from pkvm_emu.kernel.exports.dma import device_mask
        from pkvm_emu.kernel.exports.of_references import of_dma_is_coherent

        domains, domain = self._kernel.part(IommuDomains), self.domain_of(device.address)
        if not domain or domains.kind(domain) == DOMAIN_IDENTITY:
            return Mapping(pa, 0, 0)
        least = domains.page_sizes(domain) & -domains.page_sizes(domain)
        offset = pa & least - 1
        length = offset + size + least - 1 & -least
        # A structure without a mask cannot widen that of every platform device.
        says = device.layout.dma_mask is not None
        limit = device_mask(self._kernel, device.address) if says else _PLATFORM_MASK
        start = domains.take(domain, length, limit)
        if start is None:
            return None
        if device.node is not None and of_dma_is_coherent(self._kernel, device.node.address):
            prot |= CACHE
        if domains.map(domain, start, pa - offset, length, prot):
            domains.give_back(domain, start)
            return None
        return Mapping(start + offset, start, length)

    def unmap(self, device: Device, mapping: Mapping) -> None:
        """End a mapping of :meth:`map`."""
        domains, domain = self._kernel.part(IommuDomains), self.domain_of(device.address)
        if not mapping.size:
            return
        if domains.unmap(domain, mapping.start, mapping.size) != mapping.size:
            warn(self._kernel, "drivers/iommu/dma-iommu.c __iommu_dma_unmap")
        domains.give_back(domain, mapping.start)

    # Structures

    def _operations_of(self, fwnode: int) -> int:
        """``struct iommu_ops`` of the unit that belongs to a node; 0 where none is registered."""
        from pkvm_emu.kernel.exports.device_match import fwnode_of

        units = self._kernel.part(IommuUnits).units.values()
        return next((operations for operations, device in units if fwnode_of(self._kernel, device) == fwnode), 0)

    def _operation(self, operations: int, name: str) -> int:
        """A member of ``struct iommu_ops``; 0 where it is NULL, or the kernel line has none."""
        offset = structs(self._kernel).ops.get(name)
        return 0 if offset is None else self._kernel.memory.read_u64(operations + offset)

    def _call(self, operations: int, name: str, *arguments: int) -> None:
        function = self._operation(operations, name)
        if function:
            self._kernel.call(function, *arguments)

    def _allocate(self, size: int) -> int:
        found = self._kernel.part(Slab).kmalloc(size, _GFP_KERNEL)
        if found is None:
            raise ModuleError(f"the host's IOMMU core has no memory for {size} bytes (-ENOMEM): all RAM is in use")
        self._kernel.memory.write(found, bytes(size))
        return found

    def client_of(self, device: Device) -> int:
        """``dev->iommu``; 0 where the device has none."""
        offset = device.layout.iommu
        return self._kernel.memory.read_u64(device.address + offset) if offset is not None else 0

    def _client(self, device: Device) -> int:
        """``dev_iommu_get``"""
        found = self.client_of(device)
        if not found:
            found = self._allocate(structs(self._kernel).client_size)
            assert device.layout.iommu is not None
            self._kernel.memory.write_u64(device.address + device.layout.iommu, found)
        return found

    def _free_client(self, device: Device) -> None:
        client = self.client_of(device)
        if client:
            self.free_fwspec(device)
            self._kernel.part(Slab).kfree(client)
            assert device.layout.iommu is not None
            self._kernel.memory.write_u64(device.address + device.layout.iommu, 0)

    def _fwspec(self, device: Device) -> int:
        client = self.client_of(device)
        return self._kernel.memory.read_u64(client + structs(self._kernel).fwspec) if client else 0

    def _set_group(self, device: Device, group: int) -> None:
        assert device.layout.iommu_group is not None
        self._kernel.memory.write_u64(device.address + device.layout.iommu_group, group)

    def _say(self, device: Device, text: str) -> None:
        from pkvm_emu.kernel.exports.device_log import prefix

        self._kernel.log.write(f"{prefix(self._kernel, device.address)}{text}", _INFO)


__all__ = ["READ", "WRITE", "IommuClients", "IommuUnits", "Mapping"]
