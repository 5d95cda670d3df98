"""Giving a kernel its device tree at boot: the user's, or a board made up for the modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.mmio import MmioWindows
from pkvm_emu.kernel.devicetree.nodes import DeviceTree
from pkvm_emu.kernel.devicetree.reserved import ReservedMemory
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.devicetree.board import Board
    from pkvm_emu.kernel.kernel import Kernel

_PAGE_SHIFT = 12
#: What the names of functions that read device trees or make platform devices begin with.
_PREFIXES = ("of_", "__of_", "platform_", "__platform_")


def uses_device_tree(file: ModuleFile) -> bool:
    """Whether a module calls device-tree or platform functions at all."""
    return any(symbol.shndx == 0 and symbol.name.startswith(_PREFIXES) for symbol in file.symbols)


def _cells(value: int, count: int) -> tuple[int, ...]:
    """A number as so many cells."""
    return tuple(value >> 32 * (count - 1 - position) & 0xFFFF_FFFF for position in range(count))


@kernel_part
class BoardSetup(State):
    """Where a kernel's device tree comes from.

    Args:
        kernel: the kernel.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.board")
        self._kernel = kernel
        self._board: Board | None = None
        #: What :attr:`_board` was made for; it differs from ``modules`` after a restore.
        self._made_for: list[ModuleFile] = []
        self._region_count = 0
        #: The user gave a tree: nothing is made up.
        self.is_given = False
        #: The modules that the board was made up for, and the memory it reserved for them, in order.
        self.modules: StateList[ModuleFile] = StateList(kernel.machine.journal)
        self.regions: StateList[int] = StateList(kernel.machine.journal)

    def use(self, tree: TreeNode) -> None:
        """Install the user's tree. As a boot loader does, its memory nodes and boot arguments become this machine's."""
        self.is_given = True
        ram = self._kernel.machine.ram
        memories = [node for node in tree.children if node.string("device_type") == "memory"]
        for node in memories[1:]:
            tree.children.remove(node)
        memory = memories[0] if memories else tree.add(f"memory@{ram.base:x}", device_type="memory")
        cells = (tree.cell("#address-cells", 2), tree.cell("#size-cells", 1))
        memory.set("reg", (*_cells(ram.base, cells[0]), *_cells(ram.size, cells[1])))
        chosen = tree.child("chosen") or tree.add("chosen")
        chosen.set("bootargs", str(self._kernel.command_line))
        self._kernel.part(ReservedMemory).reserve(tree)
        self._kernel.part(DeviceTree).install(tree)
        self._kernel.part(MmioWindows).map_tree(tree)

    def make_up(self, files: Sequence[ModuleFile]) -> None:
        """Add what modules ask for to the made-up board; without a module that uses a device tree there is none."""
        new = [] if self.is_given else [file for file in files if uses_device_tree(file)]
        if not new:
            return
        from pkvm_emu.kernel.devicetree.wants import wants_of

        board = self._present_board()
        for file in new:
            board.add(wants_of(file))
            self.modules.append(file)
        self._made_for = list(self.modules)
        live = self._kernel.part(DeviceTree)
        if live.root:
            live.grow(board.root)
        else:
            live.install(board.root)
        self._kernel.part(MmioWindows).map_tree(board.root)

    def _present_board(self) -> Board:
        """The board as it stands. Going back to a snapshot leaves a later one in Python, so it is made again then."""
        board = self._board
        if board is None or self._made_for != list(self.modules):
            self._region_count = 0
            board = self._board = self._new_board()
            if self.modules:
                from pkvm_emu.kernel.devicetree.wants import wants_of

                for file in self.modules:
                    board.add(wants_of(file))
        return board

    @property
    def has_masters(self) -> bool:
        """Whether the tree in use has nodes that stand for bus masters (see ``kernel/bus_masters.py``)."""
        tree = self._kernel.part(DeviceTree).tree
        return tree is not None and any("pkvm-emu,dma-master" in one.strings("compatible") for one in tree.walk())

    @property
    def tree(self) -> TreeNode:
        """The tree in use; a board without devices where no module needed one."""
        return self._kernel.part(DeviceTree).tree or self._new_board().root

    def _new_board(self) -> Board:
        from pkvm_emu.kernel.devicetree.board import Board

        machine = self._kernel.machine
        profile = machine.profile
        return Board(
            profile.ram_base, profile.ram_size, profile.cpus, str(self._kernel.command_line), self._allocate_region
        )

    def _allocate_region(self, size: int) -> int | None:
        position = self._region_count
        self._region_count += 1
        if position < len(self.regions):
            return int(self.regions[position])
        order = ((size - 1) >> _PAGE_SHIFT).bit_length()
        base = self._kernel.pages.alloc_pages(order, zero=True)
        self.regions.append(base or 0)
        return base
