"""What the printf engine reads from a kernel: memory, symbols, device-tree nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.vsprintf_env import FormatEnv

if TYPE_CHECKING:
    from pkvm_emu.kernel.devicetree.nodes import OfNode
    from pkvm_emu.kernel.kernel import Kernel

#: ``OF_POPULATED``: the node has a device.
_POPULATED = 1 << 3


class PrintedNode(NamedTuple):
    """A device-tree node as ``%pOF`` prints it (see :class:`pkvm_emu.kernel.vsprintf_env.DeviceNode`)."""

    full_name: str
    phandle: int
    flags: int
    compatible: list[str]


class KernelFormatEnv(FormatEnv):
    """What ``printk`` and its kin read from the kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(self, va: int, size: int) -> bytes:
        return self._kernel.memory.read(va, size)

    def read_cstr(self, va: int, limit: int) -> bytes:
        return self._kernel.memory.read_cstr(va, limit)

    def symbolize(self, va: int) -> str | None:
        return self._kernel.symbolize(va)

    def of_node(self, va: int) -> PrintedNode | None:
        # Most kernels have no device tree, and start without its code.
        from pkvm_emu.kernel.devicetree.nodes import DeviceTree

        return self._printed(self._kernel.part(DeviceTree).nodes.get(va))

    def fwnode(self, va: int) -> PrintedNode | None:
        from pkvm_emu.kernel.devicetree.nodes import DeviceTree

        return self._printed(self._kernel.part(DeviceTree).of_fwnode(va))

    def _printed(self, node: OfNode | None) -> PrintedNode | None:
        if node is None:
            return None
        from pkvm_emu.kernel.devicetree.devices import Devices

        has_device = self._kernel.part(Devices).existing(node) is not None
        tree = node.tree
        return PrintedNode(node.path, tree.phandle, _POPULATED if has_device else 0, tree.strings("compatible"))
