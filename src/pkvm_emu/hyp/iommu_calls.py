"""Calls into an IOMMU driver, also where the host's stage-2 changes while the CPU is at EL1.

What the model does to pages for a virtual machine, or for a person at the Python prompt, is no hypercall that the CPU has taken. A
driver that follows the host's stage-2 has to hear of it all the same, and its code can only run at EL2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_PSTATE_EL2H_MASKED = 0x3C9


def call_driver(hyp: Hypervisor, function: int, kcfi: int, *args: int) -> int:
    """Call a function of a driver at EL2; arguments and result as for ``Hypervisor.call_module``."""
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
