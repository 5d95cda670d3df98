"""What stands behind the windows of a board: models by ``compatible``, plain registers for the rest, and their interrupts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pkvm_emu.devices.bus import MmioBus
from pkvm_emu.devices.models import for_compatible
from pkvm_emu.hyp import layout as hyp_layout
from pkvm_emu.kernel import layout
from pkvm_emu.kernel.devicetree.addresses import REGISTERS, Window, interrupts, windows
from pkvm_emu.kernel.devicetree.irq import Interrupts
from pkvm_emu.kernel.devicetree.tree import TreeNode
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.core import Service

if TYPE_CHECKING:
    from pkvm_emu.devices.loading import MmioSpec
    from pkvm_emu.devices.model import Model
    from pkvm_emu.kernel.kernel import Kernel

_IRQ_MASKED = 1 << 7
#: How much of EL2's private range modules are loaded to, from the first one on.
_EL2_MODULES = 1 << 30


@kernel_part
class MmioWindows:
    """The devices behind the windows of a device tree, and those that a user placed.

    Args:
        kernel: whose machine has them.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._given: list[type[Model]] = []
        self._delivers = False
        self.bus = MmioBus(kernel.machine)
        self.bus.set_interrupt_handler(self._interrupt)
        after = kernel.machine.core.after_run

        def after_run() -> None:
            after()
            self.deliver()

        kernel.machine.core.after_run = after_run

    def use(self, specs: Sequence[MmioSpec]) -> None:
        """Place the models that a user gives, before the device tree is mapped.

        Raises:
            UsageError: a model that cannot be read, or a window that is taken.
        """
        if not specs:
            return
        # Only where a user gives models: it imports what few runs need.
        from pkvm_emu.devices.loading import read_spec

        for given in (one for spec in specs for one in read_spec(spec)):
            if given.base is None:
                self._given.append(given.model)
            else:
                self.bus.attach(given.model(self.bus, given.base, given.size, given.name))
                self._track_pc()

    def map_tree(self, tree: TreeNode) -> None:
        """Put a device behind every ``reg`` of a tree that lies outside RAM; what is there already stays."""
        for node in tree.walk():
            if node.base_name != "memory" and "reg" in node.properties:
                self._map_node(node)
        by_phandle = {node.phandle: node for node in tree.walk() if node.phandle}
        for node in tree.walk():
            model = self._model_of(node)
            if model is not None:
                names = iter(node.strings("interrupt-names"))
                lines = tuple((next(names, ""), one.hwirq) for one in interrupts(tree, node))
                model.connect(lines, self._upstream(node, by_phandle))

    def _map_node(self, node: TreeNode) -> None:
        least = node.cell(REGISTERS, 0)
        for index, one in enumerate(Window(row.start, max(row.size, least)) for row in windows(node)):
            name = node.path if not index else f"{node.path}[{index}]"
            chosen = self._choose(node) if not index else None
            present = self.bus.windows.get((one.start, one.start + one.size))
            if present is not None or (chosen is not None and self._is_taken(one.start, one.size)):
                continue
            if chosen is not None and self._can_hold(one.start, one.size):
                self.bus.attach(chosen(self.bus, one.start, one.size, name))
            elif not self.bus.map(one.start, one.size, name):
                continue
            self._track_pc()

    def _choose(self, node: TreeNode) -> type[Model] | None:
        for text in node.strings("compatible"):
            own = next((model for model in self._given if text in model.COMPATIBLE), None)
            found = own or for_compatible(text)
            if found is not None:
                return found
        return None

    def _is_taken(self, start: int, size: int) -> bool:
        return any(one.base < start + size and start < one.base + one.size for one in self.bus.models)

    def _can_hold(self, start: int, size: int) -> bool:
        ram = self._kernel.machine.ram
        own = [window for window in self._kernel.machine.engine.mmio_windows if not self.bus.is_own(window)]
        return self.bus.is_window(start, size) and not any(
            low < start + size and start < high for low, high in [(ram.base, ram.end), *own]
        )

    def _model_of(self, node: TreeNode) -> Model | None:
        if "reg" not in node.properties:
            return None
        first = next(iter(windows(node)), None)
        window = self.bus.window_at(first.start) if first is not None else None
        return window.model if window is not None and first is not None and window.start == first.start else None

    def _upstream(self, node: TreeNode, nodes: dict[int, TreeNode]) -> tuple[Model, int] | None:
        cells = node.cells("iommus")
        target = nodes.get(cells[0]) if cells else None
        model = self._model_of(target) if target is not None else None
        return (model, cells[1] if len(cells) > 1 else 0) if model is not None else None

    def _track_pc(self) -> None:
        engine = self._kernel.machine.engine
        addresses = self._kernel.memory.layout
        engine.keep_pc_exact(addresses.modules_vaddr, addresses.kimage_vaddr + layout.KIMAGE_SIZE)
        engine.keep_pc_exact(hyp_layout.FIRST_MODULE_VA, hyp_layout.FIRST_MODULE_VA + _EL2_MODULES)

    # Interrupts

    def _interrupt(self) -> None:
        core = self._kernel.machine.core
        if core.engine.in_device and self._can_take():
            core.leave_after_access(Service("an interrupt of a device", 1, 0, self._deliver, in_hook=False))

    def _deliver(self) -> None:
        self.deliver()

    def _can_take(self) -> bool:
        core = self._kernel.machine.core
        return not self._delivers and core.el == 1 and not core.engine.read("pstate") & _IRQ_MASKED

    def deliver(self) -> bool:
        """Run the handlers of interrupts that models raised, in order; whether there were any. One that no driver asked for is
        forgotten.

        It happens between two instructions of the host where interrupts are enabled, where the host waits, and when the CPU has
        come back to Python; the hypervisor and handlers are not interrupted.
        """
        part = self._kernel.part(Interrupts)
        if not self.bus.pending or self._delivers or self._kernel.machine.core.el != 1:
            return False
        self._delivers = True
        try:
            while self.bus.pending:
                number = self.bus.pending[0]
                del self.bus.pending[0]
                line = next((one for one, entry in part.lines.items() if entry.hwirq == number), None)
                if line is not None and part.actions.get(line):
                    part.fire(line)
        finally:
            self._delivers = False
        return True
