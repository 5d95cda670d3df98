"""The register windows of a board: every ``reg`` outside RAM becomes a recording register file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.devices.registers import RegisterFile
from pkvm_emu.kernel.devicetree.addresses import windows
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.registry import kernel_part

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


@kernel_part
class MmioWindows:
    """The register files behind the windows of a device tree.

    Args:
        kernel: whose machine has them.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.registers = RegisterFile(kernel.machine)

    def map_tree(self, tree: TreeNode) -> None:
        """Put registers behind every ``reg`` of a tree that lies outside RAM; what is mapped already stays."""
        for node in tree.walk():
            if node.base_name == "memory" or "reg" not in node.properties:
                continue
            for one in windows(node):
                self.registers.map(one.start, one.size)
