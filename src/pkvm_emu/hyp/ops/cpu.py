"""Ops about the CPU they run on: its trap configuration, its number, waiting.

Source: arch/arm64/kvm/hyp/nvhe/{modules,timer-sr,hyp-smp}.c.
"""

from __future__ import annotations

from pkvm_emu.hyp.errors import HypUndefined
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U64

_U64 = (1 << 64) - 1
_USECS_PER_SECOND = 1_000_000


@op("update_hcr_el2")
def update_hcr_el2(hyp: Hypervisor, set_mask: U64, clear_mask: U64) -> None:
    """``HCR_EL2 = (value | set_mask) & ~clear_mask`` on this CPU.

    The value kept for the CPU's resume changes too. It is what the register is written from: a bit that somebody set
    in HCR_EL2 behind the hypervisor's back is lost. Nothing is checked.
    """
    index = hyp.cpu.index
    hyp.hcr[index] = (hyp.hcr[index] | set_mask) & ~clear_mask & _U64
    hyp.machine.engine.write_sysreg("HCR_EL2", hyp.hcr[index])
    hyp.machine.engine.flush_tlb()


@op("update_hfgwtr_el2")
def update_hfgwtr_el2(hyp: Hypervisor, set_mask: U64, clear_mask: U64) -> None:
    """``HFGWTR_EL2 = (value | set_mask) & ~clear_mask`` on this CPU, kept for its resume.

    On a CPU without fine-grained traps the write is an undefined instruction: a hypervisor panic. The CPU model behind the profile
    feature ``fgt`` keeps the value and does not trap by it.
    """
    index = hyp.cpu.index
    hyp.hfgwtr[index] = (hyp.hfgwtr[index] | set_mask) & ~clear_mask & _U64
    if not hyp.machine.profile.fgt:
        raise HypUndefined("the CPU has no FEAT_FGT, so writing HFGWTR_EL2 is undefined", "fw_write_hfgwtr")


@op("hyp_smp_processor_id")
def hyp_smp_processor_id(hyp: Hypervisor) -> int:
    """The number of the current CPU."""
    return hyp.cpu.index


@op("udelay")
def udelay(hyp: Hypervisor, usecs: U64) -> None:
    """Wait ``usecs`` microseconds of the virtual counter: the deterministic counter moves on by that much at once."""
    hyp.machine.core.ticks += (usecs * hyp.machine.profile.counter_hz & _U64) // _USECS_PER_SECOND
