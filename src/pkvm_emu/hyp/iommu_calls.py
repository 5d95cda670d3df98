"""Calls into an IOMMU driver, also where the host's stage-2 changes while the CPU is at EL1; and a count of them.

What the model does to pages for a virtual machine, or for a person at the Python prompt, is no hypercall that the CPU has taken. A
driver that follows the host's stage-2 has to hear of it all the same, and its code can only run at EL2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_PSTATE_EL2H_MASKED = 0x3C9


@hyp_part
class IommuCalls(State):
    """How often the core entered each function of the drivers.

    Attributes:
        counts: by ``(hyp VA of the driver's table, name of the member)``.
        functions: hyp VA of what was called last, by the same.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.iommu_calls")
        self.counts: StateDict[tuple[int, str], int] = StateDict(hyp.machine.journal)
        self.functions: StateDict[tuple[int, str], int] = StateDict(hyp.machine.journal)

    def note(self, table: int, name: str, function: int) -> None:
        """Count one call."""
        key = (table, name)
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.functions.get(key) != function:
            self.functions[key] = function

    def of(self, table: int) -> dict[str, int]:
        """The counts of one driver by member, in the order of the first calls."""
        return {name: count for (at, name), count in self.counts.items() if at == table}


def call_driver(hyp: Hypervisor, function: int, kcfi: int, *args: int, table: int = 0, name: str = "") -> int:
    """Call a function of a driver at EL2; arguments and result as for ``Hypervisor.call_module``.

    ``table`` and ``name`` are the driver's structure and the member, for the count.
    """
    if name:
        hyp.part(IommuCalls).note(table, name, function)
    core, engine = hyp.machine.core, hyp.machine.engine
    if core.el == 2:
        return hyp.call_module(function, kcfi, *args)
    pstate, sp = engine.read("pstate"), engine.read("sp")
    engine.set_pstate(_PSTATE_EL2H_MASKED)
    engine.write("sp", hyp.cpu.stack_top)
    try:
        return hyp.call_module(function, kcfi, *args)
    finally:
        engine.set_pstate(pstate)
        engine.write("sp", sp)
