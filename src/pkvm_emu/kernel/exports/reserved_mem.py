"""Reserved memory regions of the device tree (``drivers/of/of_reserved_mem.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.cma import ContiguousAreas
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.layouts import NODE
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.devicetree.reserved import ReservedMemory
from pkvm_emu.kernel.exports.of import node_at
from pkvm_emu.kernel.exports.of_references import find_reference
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, CStr, Ptr

ENODEV, EINVAL = 19, 22
_SIZE = 64
#: Regions that devices can be given as their pool.
_POOLS = frozenset(("shared-dma-pool", "restricted-dma-pool"))


@kernel_symbol("of_reserved_mem_lookup")
def of_reserved_mem_lookup(kernel: Kernel, node: Ptr) -> int:
    """The ``struct reserved_mem`` of a child of ``/reserved-memory``; NULL for any other node or one without an address."""
    found = node_at(kernel, node)
    if found is None or not _is_region(kernel, found):
        return 0
    where = kernel.part(ReservedMemory).of(found.tree)
    if where is None:
        return 0
    devices = kernel.part(Devices)
    layout = devices.caller_layout()
    key = (found.address, layout.reserved_base)
    known = devices.reserved.get(key)
    if known is None:
        known = devices.reserved[key] = devices.allocate(_SIZE)
        kernel.memory.write_u64(known, kernel.memory.read_u64(found.address + NODE.full_name))
        kernel.memory.write_u64(known + layout.reserved_base, where.start)
        kernel.memory.write_u64(known + layout.reserved_base + 8, where.size)
    return known


def _is_region(kernel: Kernel, node: OfNode) -> bool:
    return node.parent is not None and node.parent is kernel.part(DeviceTree).find("/reserved-memory")


@kernel_symbol("of_reserved_mem_device_init_by_idx")
def of_reserved_mem_device_init_by_idx(kernel: Kernel, device: Ptr, node: Ptr, index: S32) -> int:
    """Give a device region ``index`` of ``memory-region`` as its pool: 0, -ENODEV without it, -EINVAL if it is no pool."""
    if not device or not node:
        return -EINVAL
    found = find_reference(kernel, node_at(kernel, node), "memory-region", None, 0, index)
    if isinstance(found, int) or found.node is None:
        return -ENODEV
    if not found.node.tree.is_available:
        return 0
    if not _is_region(kernel, found.node) or not _POOLS.intersection(found.node.tree.strings("compatible")):
        return -EINVAL
    where = kernel.part(ReservedMemory).of(found.node.tree)
    if where is None:
        return -EINVAL
    owner = kernel.part(Devices).at(device)
    if "reusable" in found.node.tree.properties and owner.layout.cma_area is not None:
        area = kernel.part(ContiguousAreas).of_region(where.start, where.size, found.node.tree.base_name)
        kernel.memory.write_u64(device + owner.layout.cma_area, area)
    kernel.log.write(f"{owner.name}: assigned reserved memory node {found.node.name}", 6)
    return 0


@kernel_symbol("of_reserved_mem_device_init_by_name")
def of_reserved_mem_device_init_by_name(kernel: Kernel, device: Ptr, node: Ptr, name: CStr) -> int:
    """The same by the name in ``memory-region-names``."""
    found = node_at(kernel, node)
    names = found.tree.strings("memory-region-names") if found is not None else []
    return of_reserved_mem_device_init_by_idx(kernel, device, node, names.index(name)) if name in names else -ENODEV


@kernel_symbol("of_reserved_mem_device_release")
def of_reserved_mem_device_release(kernel: Kernel, device: Ptr) -> None:
    """Take the pool back."""
    offset = kernel.part(Devices).at(device).layout.cma_area
    if offset is not None and kernel.memory.read_u64(device + offset) in kernel.part(ContiguousAreas).areas:
        kernel.memory.write_u64(device + offset, 0)
