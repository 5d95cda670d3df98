"""What addresses and interrupts of a node come to, by ``reg``, ``ranges`` and interrupt parents.

Source: the Devicetree Specification 0.4 (2.3, 2.4), ``drivers/of/{address,irq}.c``; interrupt specifiers of the GIC:
``Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml``.
"""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.kernel.devicetree.tree import TreeNode, by_phandle

_GIC_SPI, _GIC_PPI, _GIC_ESPI, _GIC_EPPI = 0, 1, 2, 3
_GIC_FIRST = {_GIC_SPI: 32, _GIC_PPI: 16, _GIC_ESPI: 4096, _GIC_EPPI: 1056}
_ADDRESS_CELLS_LIMIT = 4
#: A property of ours: how many bytes of registers there are at least, where ``reg`` says less.
REGISTERS = "pkvm-emu,registers"
_MASK64 = (1 << 64) - 1


class Window(NamedTuple):
    """A physical range: first address and bytes."""

    start: int
    size: int


class Interrupt(NamedTuple):
    """One interrupt: its number at the controller, and the trigger bits (1 and 2 edges, 4 and 8 levels)."""

    hwirq: int
    trigger: int


def _number(cells: list[int]) -> int:
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value & _MASK64


def reg_entry(node: TreeNode, index: int, name: str = "reg") -> tuple[list[int], int] | None:
    """Entry ``index`` of ``reg``, or of another property of that form: address cells and size, on the node's own bus; None where
    there is none.
    """
    address, size = node.inherited_cells("#address-cells"), node.inherited_cells("#size-cells")
    cells = node.cells(name)
    stride = address + size
    if not 0 < address <= _ADDRESS_CELLS_LIMIT or index < 0 or (index + 1) * stride > len(cells):
        return None
    entry = cells[index * stride : (index + 1) * stride]
    return entry[:address], _number(entry[address:])


def translate(node: TreeNode, cells: list[int]) -> int | None:
    """A bus address of ``node`` as a physical one, through the ``ranges`` of all buses above; None (OF_BAD_ADDR) where
    one of them has no ``ranges`` or does not cover it.
    """
    address = _number(cells)
    bus = node.parent
    while bus is not None and bus.parent is not None:
        if "ranges" not in bus.properties:
            return None
        own = bus.cell("#address-cells", bus.inherited_cells("#address-cells"))
        size = bus.cell("#size-cells", bus.inherited_cells("#size-cells"))
        above = bus.inherited_cells("#address-cells")
        moved = _through_ranges(bus.cells("ranges"), address, own, above, size)
        if moved is None:
            return None
        address = moved
        bus = bus.parent
    return address


def _through_ranges(ranges: list[int], address: int, own: int, above: int, size: int) -> int | None:
    if not ranges:
        return address
    stride = own + above + size
    for at in range(0, len(ranges) - stride + 1, stride):
        start = _number(ranges[at : at + own])
        length = _number(ranges[at + own + above : at + stride])
        if start <= address < start + length:
            return address - start + _number(ranges[at + own : at + own + above])
    return None


def window(node: TreeNode, index: int = 0) -> Window | None:
    """The physical range of entry ``index`` of ``reg``; None where there is none or it does not translate."""
    entry = reg_entry(node, index)
    if entry is None:
        return None
    start = translate(node, entry[0])
    return None if start is None else Window(start, entry[1])


def windows(node: TreeNode) -> list[Window]:
    """All physical ranges of ``reg``, up to the first that does not translate."""
    found: list[Window] = []
    while (one := window(node, len(found))) is not None:
        found.append(one)
    return found


def interrupt_parent(root: TreeNode, node: TreeNode) -> TreeNode | None:
    """The interrupt controller (or nexus) of a node."""
    above: TreeNode | None = node
    while above is not None:
        phandle = above.cell("interrupt-parent", 0)
        if phandle:
            return by_phandle(root, phandle)
        above = above.parent
        if above is not None and "#interrupt-cells" in above.properties:
            return above
    return None


def interrupts(root: TreeNode, node: TreeNode) -> list[Interrupt]:
    """The interrupts of a node in order, from ``interrupts-extended`` or ``interrupts``."""
    found: list[Interrupt] = []
    cells = node.cells("interrupts-extended")
    if cells:
        while cells:
            parent = by_phandle(root, cells[0])
            count = parent.cell("#interrupt-cells", 1) if parent is not None else 0
            if parent is None or len(cells) < 1 + count:
                break
            found.append(decode_interrupt(cells[1 : 1 + count]))
            cells = cells[1 + count :]
        return found
    cells = node.cells("interrupts")
    parent = interrupt_parent(root, node)
    count = parent.cell("#interrupt-cells", 1) if parent is not None else 0
    while parent is not None and count and len(cells) >= count:
        found.append(decode_interrupt(cells[:count]))
        cells = cells[count:]
    return found


def decode_interrupt(specifier: list[int]) -> Interrupt:
    """An interrupt specifier: (type, number, flags) of the GIC with three cells and more, (number, flags) with fewer."""
    if len(specifier) >= 3:
        kind, number, flags = specifier[:3]
        return Interrupt(_GIC_FIRST.get(kind, 0) + number, flags & 0xF)
    return Interrupt(specifier[0], specifier[1] & 0xF if len(specifier) > 1 else 0)
