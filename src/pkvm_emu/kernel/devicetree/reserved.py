"""The regions of ``/reserved-memory``: where they are, and that nobody else gets them.

Source: ``drivers/of/of_reserved_mem.c``: regions with ``reg`` first, then those that only say how large they are, from the top
of ``alloc-ranges`` or of memory down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.elf.module_file import read_input
from pkvm_emu.errors import InputError
from pkvm_emu.kernel.devicetree.addresses import Window, reg_entry, translate, window
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.devicetree.tree import TreeNode
    from pkvm_emu.kernel.kernel import Kernel

#: A property of ours: the file that a region holds when the kernel starts, as seen from the current directory.
CONTENTS = "pkvm-emu,contents"
_ERROR = 3
_MIB = 20


@kernel_part
class ReservedMemory(State):
    """Regions of a given tree by the path of their node.

    Attributes:
        regions: start and bytes; None for a region that could not be reserved, which the kernel forgets about.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.reserved_memory")
        self._kernel = kernel
        self.regions: StateDict[str, Window | None] = StateDict(
            kernel.machine.journal, "kernel.reserved_memory.regions"
        )

    def of(self, node: TreeNode) -> Window | None:
        """Where the region of a node is; None: it has none."""
        return self.regions[node.path] if node.path in self.regions else window(node)

    def reserve(self, tree: TreeNode) -> None:
        """Keep the regions of a tree from being given out, as the kernel does before it has an allocator.

        Raises:
            InputError: a file that a region is to hold cannot be read or does not fit.
        """
        above = tree.child("reserved-memory")
        nodes = [] if above is None else [node for node in above.children if node.is_available]
        for node in nodes:
            where = window(node) if "reg" in node.properties else None
            if where is not None and where.size:
                free = self._kernel.pages.reserve(where.start, where.start + where.size)
                self._settle(node, where, where if free else None)
        for node in nodes:
            size = _number(node, "size", "#size-cells") if "reg" not in node.properties else 0
            if size:
                self._settle(node, Window(0, size), self._find(node, size))

    def _fill(self, node: TreeNode, where: Window) -> None:
        """Put there what a boot loader would have: the file that the node names."""
        path = node.string(CONTENTS)
        if path is None:
            return
        data = read_input(path)
        ram = self._kernel.machine.ram
        if len(data) > where.size or where.start not in ram or where.start + where.size - 1 not in ram:
            raise InputError(
                f"{path}: {len(data):#x} bytes do not go into {node.path} ({where.size:#x} at {where.start:#x})"
            )
        ram.write(where.start, data)

    def _find(self, node: TreeNode, size: int) -> Window | None:
        align = _number(node, "alignment", "#address-cells") or 1
        if align & (align - 1):
            return None
        ranges = _ranges(node) or [Window(0, 1 << 64)]
        for one in ranges:
            pa = self._kernel.pages.carve(size, align, one.start, one.start + one.size)
            if pa is not None:
                return Window(pa, size)
        return None

    def _settle(self, node: TreeNode, wanted: Window, found: Window | None) -> None:
        self.regions[node.path] = found
        if found is not None:
            self._fill(node, found)
        if found is None:
            base = f"base {wanted.start:#018x}, size {wanted.size >> _MIB} MiB"
            text = f"failed to reserve memory for node '{node.name}': {base}"
            if not wanted.start:
                text = f"failed to allocate memory for node '{node.name}': size {wanted.size >> _MIB} MiB"
            self._kernel.log.write(f"OF: reserved mem: {text}", _ERROR)


def _number(node: TreeNode, name: str, cells: str) -> int:
    value = 0
    for cell in node.cells(name)[: node.inherited_cells(cells)]:
        value = value << 32 | cell
    return value


def _ranges(node: TreeNode) -> list[Window]:
    """``alloc-ranges``: rows like those of ``reg``."""
    found = []
    index = 0
    while (entry := reg_entry(node, index, "alloc-ranges")) is not None:
        start = translate(node, entry[0])
        if start is not None:
            found.append(Window(start, entry[1]))
        index += 1
    return found
