"""What a node refers to: phandles, addresses, interrupts (``drivers/of/{base,address,irq}.c``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pkvm_emu.kernel.devicetree import layouts
from pkvm_emu.kernel.devicetree.addresses import interrupts, reg_entry, translate, window
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.irq import Interrupts
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.exports.of import address_of, by_phandle, node_at
from pkvm_emu.kernel.exports.vmalloc import ioremap
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, CStr, Ptr

ENOENT, EINVAL, ENODATA, ENODEV = 2, 22, 61, 19
_MAX_ARGUMENTS = 16
_BAD_ADDRESS = (1 << 64) - 1


class Reference(NamedTuple):
    """One entry of a list of phandles; ``node`` is None where no node has that number."""

    phandle: int
    node: OfNode | None
    arguments: list[int]


class _BadList(Exception):
    """A list that cannot be read on."""


def references(kernel: Kernel, node: OfNode, name: str, cells_name: str | None, cell_count: int) -> Iterator[Reference]:
    """The entries of a list of phandles with arguments."""
    cells = node.tree.cells(name)
    at = 0
    while at < len(cells):
        target = by_phandle(kernel, cells[at])
        count = 0
        if cells[at]:
            if target is None and cells_name is not None:
                kernel.log.write(f"OF: {node.path}: could not find phandle {cells[at]}", 3)
                raise _BadList
            count = cell_count if cell_count >= 0 else 0
            if cells_name is not None and target is not None:
                named = target.tree.cells(cells_name)
                if named:
                    count = named[0]
                elif cell_count < 0:
                    kernel.log.write(f"OF: {node.path}: could not get {cells_name} for {target.path}", 3)
                    raise _BadList
            if at + 1 + count > len(cells):
                kernel.log.write(f"OF: {node.path}: #{cells_name} = {count} found {len(cells) - at - 1}", 3)
                raise _BadList
        yield Reference(cells[at], target, cells[at + 1 : at + 1 + count])
        at += 1 + count


def find_reference(
    kernel: Kernel, node: OfNode | None, name: str | None, cells_name: str | None, cell_count: int, index: int
) -> Reference | int:
    """Entry ``index`` of a list, or a negative errno."""
    if index < 0:
        return -EINVAL
    if node is None or name is None or node.value(name) is None:
        return -ENOENT
    if cells_name is None and cell_count < 0:
        return -EINVAL
    try:
        for number, one in enumerate(references(kernel, node, name, cells_name, cell_count)):
            if number == index:
                return one if one.phandle else -ENOENT
    except _BadList:
        return -EINVAL
    return -ENOENT


@kernel_symbol("__of_parse_phandle_with_args")
def parse_phandle_with_args(
    kernel: Kernel, node: Ptr, name: CStr, cells_name: CStr, cell_count: S32, index: S32, out: Ptr
) -> int:
    """Entry ``index`` of a list of phandles as ``struct of_phandle_args``; 0, -ENOENT, -EINVAL."""
    found = find_reference(kernel, node_at(kernel, node), name, cells_name, cell_count, index)
    if isinstance(found, int):
        return found
    if out:
        arguments = found.arguments[:_MAX_ARGUMENTS]
        raw = struct.pack("<QI", address_of(found.node), len(arguments)) + struct.pack(
            f"<{len(arguments)}I", *arguments
        )
        kernel.memory.write(out, raw)
    return 0


@kernel_symbol("of_parse_phandle")
def parse_phandle(kernel: Kernel, node: Ptr, name: CStr, index: S32) -> int:
    """The node that entry ``index`` of a plain list of phandles names (a function of its own in 5.15)."""
    found = find_reference(kernel, node_at(kernel, node), name, None, 0, index)
    return 0 if isinstance(found, int) else address_of(found.node)


@kernel_symbol("of_parse_phandle_with_args")
def parse_phandle_with_named_args(kernel: Kernel, node: Ptr, name: CStr, cells_name: CStr, index: S32, out: Ptr) -> int:
    """The form with a name for the cells (5.15)."""
    return parse_phandle_with_args(kernel, node, name, cells_name, -1, index, out)


@kernel_symbol("of_parse_phandle_with_fixed_args")
def parse_phandle_with_fixed_args(kernel: Kernel, node: Ptr, name: CStr, count: S32, index: S32, out: Ptr) -> int:
    """The form with a fixed number of cells (5.15)."""
    return parse_phandle_with_args(kernel, node, name, None, count, index, out)


@kernel_symbol("of_count_phandle_with_args")
def count_phandles(kernel: Kernel, node: Ptr, name: CStr, cells_name: CStr) -> int:
    """Entries of a list of phandles; -ENOENT without it, -EINVAL where it cannot be read."""
    found = node_at(kernel, node)
    if found is None or name is None or found.value(name) is None:
        return -ENOENT
    if cells_name is None:
        return len(found.value(name) or b"") // 4
    try:
        return sum(1 for _ in references(kernel, found, name, cells_name, -1))
    except _BadList:
        return -EINVAL


# Addresses


@kernel_symbol("of_n_addr_cells")
def n_addr_cells(kernel: Kernel, node: Ptr) -> int:
    """``#address-cells`` that hold for a node."""
    found = node_at(kernel, node)
    return found.tree.inherited_cells("#address-cells") if found is not None else 1


@kernel_symbol("of_n_size_cells")
def n_size_cells(kernel: Kernel, node: Ptr) -> int:
    """``#size-cells`` that hold for a node."""
    found = node_at(kernel, node)
    return found.tree.inherited_cells("#size-cells") if found is not None else 1


@kernel_symbol("of_get_address")
def of_get_address(kernel: Kernel, node: Ptr, index: S32, size: Ptr, flags: Ptr) -> int:
    """Pointer to entry ``index`` of ``reg`` as it stands in the tree."""
    return _entry_pointer(kernel, node, index, size, flags)


@kernel_symbol("__of_get_address")
def __of_get_address(kernel: Kernel, node: Ptr, index: S32, bar: S32, size: Ptr, flags: Ptr) -> int:
    """The same with a PCI BAR (6.x), which nothing but PCI has."""
    return _entry_pointer(kernel, node, index, size, flags)


def _entry_pointer(kernel: Kernel, node: int, index: int, size: int, flags: int) -> int:
    found = node_at(kernel, node)
    entry = reg_entry(found.tree, index) if found is not None else None
    if found is None or entry is None:
        return 0
    if size:
        kernel.memory.write_u64(size, entry[1])
    if flags:
        kernel.memory.write_u32(flags, layouts.IORESOURCE_MEM)
    stride = found.tree.inherited_cells("#address-cells") + found.tree.inherited_cells("#size-cells")
    return found.values["reg"] + 4 * stride * index


@kernel_symbol("of_translate_address")
def of_translate_address(kernel: Kernel, node: Ptr, address: Ptr) -> int:
    """The physical address of an address in a node's ``reg``; all ones where it has none."""
    found = node_at(kernel, node)
    if found is None:
        return _BAD_ADDRESS
    count = found.tree.inherited_cells("#address-cells")
    raw = kernel.memory.read(address, 4 * count)
    moved = translate(found.tree, [int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4)])
    return _BAD_ADDRESS if moved is None else moved


@kernel_symbol("of_address_to_resource")
def of_address_to_resource(kernel: Kernel, node: Ptr, index: S32, out: Ptr) -> int:
    """Entry ``index`` of ``reg`` as a ``struct resource``; -EINVAL without it."""
    found = node_at(kernel, node)
    where = window(found.tree, index) if found is not None else None
    if found is None or where is None:
        return -EINVAL
    names = found.tree.strings("reg-names")
    name = kernel.memory.read_u64(found.address + layouts.NODE.full_name)
    if index < len(names):
        name = found.values["reg-names"] + sum(len(text.encode()) + 1 for text in names[:index])
    raw = struct.pack("<QQQQQ", where.start, where.start + where.size - 1, name, layouts.IORESOURCE_MEM, 0)
    kernel.memory.write(out, raw + bytes(24))
    return 0


@kernel_symbol("of_iomap", runs_guest=True)
def of_iomap(kernel: Kernel, node: Ptr, index: S32) -> int:
    """Map entry ``index`` of ``reg``; NULL."""
    found = node_at(kernel, node)
    where = window(found.tree, index) if found is not None else None
    return ioremap(kernel, where.start, where.size) if where is not None else 0


# Interrupts


def interrupt_number(kernel: Kernel, node: OfNode, index: int) -> int | None:
    """The Linux number of interrupt ``index`` of a node; None without it."""
    root = kernel.part(DeviceTree).tree
    found = interrupts(root, node.tree) if root is not None else []
    if not 0 <= index < len(found):
        return None
    return kernel.part(Interrupts).map(found[index].hwirq, found[index].trigger)


@kernel_symbol("of_irq_get")
def of_irq_get(kernel: Kernel, node: Ptr, index: S32) -> int:
    """The Linux number of an interrupt; -EINVAL where the node has none of that index."""
    found = node_at(kernel, node)
    number = interrupt_number(kernel, found, index) if found is not None else None
    return -EINVAL if number is None else number


@kernel_symbol("irq_of_parse_and_map")
def irq_of_parse_and_map(kernel: Kernel, node: Ptr, index: S32) -> int:
    """The same with 0 for an error."""
    return max(of_irq_get(kernel, node, index), 0)


@kernel_symbol("of_irq_get_byname")
def of_irq_get_byname(kernel: Kernel, node: Ptr, name: CStr) -> int:
    """The Linux number of an interrupt by its name in ``interrupt-names``."""
    found = node_at(kernel, node)
    names = found.tree.strings("interrupt-names") if found is not None else []
    return of_irq_get(kernel, node, names.index(name)) if name in names else -ENODATA if names else -EINVAL


@kernel_symbol("of_irq_count")
def of_irq_count(kernel: Kernel, node: Ptr) -> int:
    """How many interrupts a node has."""
    found, root = node_at(kernel, node), kernel.part(DeviceTree).tree
    return len(interrupts(root, found.tree)) if found is not None and root is not None else 0


@kernel_symbol("of_find_device_by_node")
def of_find_device_by_node(kernel: Kernel, node: Ptr) -> int:
    """The platform device of a node; NULL where the kernel makes none of it."""
    found, devices = node_at(kernel, node), kernel.part(Devices)
    if found is None or not (devices.existing(found) or devices.is_platform_node(found)):
        return 0
    return devices.of_node(found).platform


# DMA


@kernel_symbol("of_dma_is_coherent")
def of_dma_is_coherent(kernel: Kernel, node: Ptr) -> bool:
    """Whether a device's DMA is coherent with the CPUs' caches.

    ``dma-coherent`` or ``dma-noncoherent`` of the nearest node up the way of its DMA decides; without one it is not
    (``dma_default_coherent`` of arm64).
    """
    found = node_at(kernel, node)
    while found is not None:
        if found.value("dma-coherent") is not None:
            return True
        if found.value("dma-noncoherent") is not None:
            return False
        found = _dma_parent(kernel, found)
    return False


def _dma_parent(kernel: Kernel, node: OfNode) -> OfNode | None:
    """``__of_get_dma_parent``: the interconnect called ``dma-mem``, else the parent."""
    names = node.tree.strings("interconnect-names")
    if "dma-mem" in names:
        cells, index = "#interconnect-cells", names.index("dma-mem")
        found = find_reference(kernel, node, "interconnects", cells, -1, index)
        if isinstance(found, Reference) and found.node is not None:
            return found.node
    return node.parent
