"""Clocks (``drivers/clk``): consumers get what their node's ``clocks`` name; enabling is counted, fixed clocks have a rate."""

from __future__ import annotations

from errno import EINVAL, ENOENT, ENOMEM, ESHUTDOWN

from pkvm_emu.kernel.devicetree import devres
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import S32, U64, Ptr
from pkvm_emu.machine.state import State, StateDict

#: An opaque ``struct clk``.
_BYTES = 64


class Clock(State):
    """What a consumer holds.

    Attributes:
        name: of the provider's node.
        rate: in Hz; 0 where nobody said.
        prepared: how often it is prepared.
        enabled: how often it is enabled.
    """

    def __init__(self, kernel: Kernel, name: str, rate: int) -> None:
        super().__init__(kernel.machine.journal)
        self.name = name
        self.rate = rate
        self.prepared = 0
        self.enabled = 0


@kernel_part
class Clocks(State):
    """All clocks that drivers hold, by the address of the ``struct clk``."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.clocks")
        self._kernel = kernel
        self.held: StateDict[int, Clock] = StateDict(kernel.machine.journal, "kernel.clocks.held")

    def get(self, node: OfNode | None, name: str, index: int = 0) -> int:
        """The clock of a name (or a place) of a consumer's node; its address, or -ENOENT."""
        kernel = self._kernel
        root = kernel.part(DeviceTree).tree
        if node is None or root is None or "clocks" not in node.tree.properties:
            return -ENOENT
        if name:
            names = node.tree.strings("clock-names")
            if name not in names:
                return -ENOENT
            index = names.index(name)
        cells = node.tree.cells("clocks")
        by_phandle = {one.phandle: one for one in root.walk() if one.phandle}
        position = 0
        while position < len(cells):
            provider = by_phandle.get(cells[position])
            if provider is None:
                return -ENOENT
            if not index:
                rate = provider.cells("clock-frequency") if "clock-frequency" in provider.properties else [0]
                return self._hold(provider.name, rate[0])
            wanted = provider.cells("#clock-cells") if "#clock-cells" in provider.properties else [0]
            position += 1 + wanted[0]
            index -= 1
        return -ENOENT

    def _hold(self, name: str, rate: int) -> int:
        address = self._kernel.part(Slab).kmalloc(_BYTES, line_facts(self._kernel.generation.kernel).gfp_zero)
        if address is None:
            return -ENOMEM
        self.held[address] = Clock(self._kernel, name, rate)
        return address


def _of_device(kernel: Kernel, device: int, name: int) -> int:
    node = kernel.part(Devices).at(device).node if device else None
    return kernel.part(Clocks).get(node, text(kernel, name) if name else "")


@kernel_symbol("clk_get", runs_guest=True)
def clk_get(kernel: Kernel, device: Ptr, name: Ptr) -> int:
    """A device's clock, or ERR_PTR(-ENOENT)."""
    return _of_device(kernel, device, name)


@kernel_symbol("devm_clk_get", runs_guest=True)
def devm_clk_get(kernel: Kernel, device: Ptr, name: Ptr) -> int:
    """The same for the life of the device."""
    address = _of_device(kernel, device, name)
    if address > 0:
        devres.add(kernel.part(Devices).at(device), "action", kernel.symbols.resolve("clk_put"), address)
    return address


@kernel_symbol("devm_clk_get_optional", runs_guest=True)
def devm_clk_get_optional(kernel: Kernel, device: Ptr, name: Ptr) -> int:
    """The same, and NULL where there is none."""
    address = devm_clk_get(kernel, device, name)
    return 0 if address == -ENOENT else address


@kernel_symbol("devm_clk_get_enabled", "devm_clk_get_optional_enabled", runs_guest=True)
def devm_clk_get_enabled(kernel: Kernel, device: Ptr, name: Ptr) -> int:
    """The same, prepared and enabled."""
    address = devm_clk_get(kernel, device, name)
    if address > 0:
        clk_prepare(kernel, address)
        clk_enable(kernel, address)
    return address


@kernel_symbol("of_clk_get", runs_guest=True)
def of_clk_get(kernel: Kernel, node: Ptr, index: S32) -> int:
    """A node's clock by its place."""
    return kernel.part(Clocks).get(kernel.part(DeviceTree).nodes.get(node), "", index) if index >= 0 else -EINVAL


@kernel_symbol("of_clk_get_by_name", runs_guest=True)
def of_clk_get_by_name(kernel: Kernel, node: Ptr, name: Ptr) -> int:
    """A node's clock by its name."""
    return kernel.part(Clocks).get(kernel.part(DeviceTree).nodes.get(node), text(kernel, name) if name else "")


@kernel_symbol("clk_put", runs_guest=True)
def clk_put(kernel: Kernel, clock: Ptr) -> None:
    """Give it back; NULL and error pointers are ignored."""
    if kernel.part(Clocks).held.pop(clock, None) is not None:
        kernel.part(Slab).kfree(clock, "clk_put")


@kernel_symbol("clk_prepare")
def clk_prepare(kernel: Kernel, clock: Ptr) -> int:
    """Make it ready; 0. NULL is a clock that is always there."""
    found = kernel.part(Clocks).held.get(clock)
    if found is not None:
        found.prepared += 1
    return 0


@kernel_symbol("clk_unprepare")
def clk_unprepare(kernel: Kernel, clock: Ptr) -> None:
    """The opposite; once too often is warned about."""
    found = kernel.part(Clocks).held.get(clock)
    if found is None:
        return
    if not found.prepared:
        warn(kernel, "drivers/clk/clk.c", f"{found.name} already unprepared")
        return
    found.prepared -= 1


@kernel_symbol("clk_enable")
def clk_enable(kernel: Kernel, clock: Ptr) -> int:
    """Let it run; 0, or -ESHUTDOWN (after a warning) where it is not prepared."""
    found = kernel.part(Clocks).held.get(clock)
    if found is None:
        return 0
    if not found.prepared:
        warn(kernel, "drivers/clk/clk.c", f"Enabling unprepared {found.name}")
        return -ESHUTDOWN
    found.enabled += 1
    return 0


@kernel_symbol("clk_disable")
def clk_disable(kernel: Kernel, clock: Ptr) -> None:
    """The opposite; once too often is warned about."""
    found = kernel.part(Clocks).held.get(clock)
    if found is None:
        return
    if not found.enabled:
        warn(kernel, "drivers/clk/clk.c", f"{found.name} already disabled")
        return
    found.enabled -= 1


@kernel_symbol("clk_get_rate")
def clk_get_rate(kernel: Kernel, clock: Ptr) -> int:
    """Its rate in Hz."""
    found = kernel.part(Clocks).held.get(clock)
    return found.rate if found is not None else 0


@kernel_symbol("clk_set_rate")
def clk_set_rate(kernel: Kernel, clock: Ptr, rate: U64) -> int:
    """Change the rate: it is what was asked for from now on; 0."""
    found = kernel.part(Clocks).held.get(clock)
    if found is not None:
        found.rate = rate
    return 0


@kernel_symbol("clk_round_rate")
def clk_round_rate(kernel: Kernel, clock: Ptr, rate: U64) -> int:
    """The rate that ``clk_set_rate`` would give."""
    return rate


@kernel_symbol("__clk_is_enabled")
def clk_is_enabled(kernel: Kernel, clock: Ptr) -> int:
    """Whether somebody enabled it."""
    found = kernel.part(Clocks).held.get(clock)
    return int(found is not None and found.enabled > 0)
