"""What EL2 keeps for each CPU: its page with the host context, its stacks, and its system registers."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.hyp import layout
from pkvm_emu.machine.engine import Engine
from pkvm_emu.machine.memory import GuestRam
from pkvm_emu.machine.profile import MachineProfile

HCR_VM = 1 << 0
#: HFGWTR_EL2 for the host: nTPIDR2_EL0 and nSMPRI_EL1.
HFGWTR_HOST = 1 << 55 | 1 << 54
_HCR_RW, _HCR_TSC, _HCR_API, _HCR_APK, _HCR_E2H = 1 << 31, 1 << 19, 1 << 41, 1 << 40, 1 << 34
#: SCTLR_EL2 as pKVM sets it: M, C, SA, I, WXN, IESB and the RES1 bits; EnIA, EnIB, EnDA, EnDB with PAuth.
_SCTLR = 0x20_30ED_183D
_SCTLR_PAUTH = 0xC800_2000
_SCTLR_BT = 1 << 36
_TCR_TG0_SH_IRGN_ORGN = 1 << 8 | 1 << 10 | 3 << 12
_T0SZ = 64 - layout.VA_BITS
_PS_48_BITS = 5
_MAIR = 0x0000_0004_0044_FFFF
#: The CPU model has 44 bits of physical address, so it walks the part of the 48-bit table that lies below 16 TiB.
_PA_BITS, _PS_44_BITS = 44, 4
_VTCR = 1 << 31 | _PS_44_BITS << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 2 << 6 | (64 - _PA_BITS)
_KEY_REGISTERS = 10
_MPIDR_RES1 = 1 << 31


@dataclass(frozen=True, slots=True)
class HypCpu:
    """EL2's memory of one CPU.

    Attributes:
        index: CPU number.
        context_pa: PA of the host context: x0..x30 at ``+8*n``.
        context_va: its hyp VA, the value of TPIDR_EL2.
        stack_top: initial SP_EL2.
        stack_base: lowest address of the stack; below it is an unmapped guard.
        overflow_top: top of the stack on which an overflow is reported.
    """

    index: int
    context_pa: int
    context_va: int
    stack_top: int
    stack_base: int
    overflow_top: int


class HostContext:
    """The host's registers as EL2 saved them: x0..x30 of one CPU, in guest memory."""

    __slots__ = ("_pa", "_ram")

    def __init__(self, ram: GuestRam, pa: int) -> None:
        self._ram = ram
        self._pa = pa

    def __getitem__(self, index: int) -> int:
        return self._ram.read_u64(self._pa + 8 * index)

    def __setitem__(self, index: int, value: int) -> None:
        self._ram.write_u64(self._pa + 8 * index, value & (1 << 64) - 1)


def hcr_for(profile: MachineProfile) -> int:
    """HCR_EL2 while the host runs, before deprivilege (``HCR_HOST_NVHE_PROTECTED_FLAGS``, without VM)."""
    hcr = _HCR_RW | _HCR_TSC | _HCR_API | _HCR_APK
    return hcr | _HCR_E2H if profile.hvhe else hcr


def set_system_registers(
    engine: Engine, profile: MachineProfile, cpu: HypCpu, vectors: int, root: int, hcr: int, host_root: int | None
) -> None:
    """Set EL2 of the CPU on the engine up as ``___kvm_hyp_init`` does.

    Args:
        engine: with the CPU on it.
        profile: its features.
        cpu: its memory at EL2.
        vectors: hyp VA of the vectors.
        root: PA of the root of EL2's table.
        hcr: HCR_EL2.
        host_root: PA of the root of the host's stage-2, where ``hcr`` switches it on.
    """
    engine.write_sysreg("HCR_EL2", hcr)
    if host_root is not None:
        engine.write_sysreg("VTCR_EL2", _VTCR)
        engine.write_sysreg("VTTBR_EL2", host_root)
    # What the host reads as MPIDR_EL1.
    engine.write_sysreg("VMPIDR_EL2", _MPIDR_RES1 | cpu.index)
    engine.write_sysreg("MAIR_EL2", _MAIR)
    if profile.hvhe:
        # The EL1 layout: the upper range is off (EPD1), T1SZ does not matter.
        engine.write_sysreg("TCR_EL2", _T0SZ | _TCR_TG0_SH_IRGN_ORGN | 1 << 23 | _PS_48_BITS << 32)
        engine.write_sysreg("CPTR_EL2", 3 << 20)
    else:
        engine.write_sysreg("TCR_EL2", _T0SZ | _TCR_TG0_SH_IRGN_ORGN | 0x8080_0000 | _PS_48_BITS << 16)
        engine.write_sysreg("CPTR_EL2", 0x33FF)
    engine.write_sysreg("TTBR0_EL2", root)
    engine.write("vbar_el2", vectors)
    engine.write_sysreg("TPIDR_EL2", cpu.context_va)
    engine.write_sysreg("CNTHCTL_EL2", 3 << 10 if profile.hvhe else 3)
    sctlr = _SCTLR
    if profile.pauth:
        sctlr |= _SCTLR_PAUTH
    if profile.bti:
        sctlr |= _SCTLR_BT
    engine.write_sysreg("SCTLR_EL2", sctlr)
    engine.write("sp_el2", cpu.stack_top)


def enable_stage2(engine: Engine, root: int) -> None:
    """Switch the host's stage-2 on for the CPU on the engine."""
    engine.write_sysreg("VTCR_EL2", _VTCR)
    engine.write_sysreg("VTTBR_EL2", root)
    engine.write_sysreg("HCR_EL2", engine.read_sysreg("HCR_EL2") | HCR_VM)
    engine.flush_tlb()


def write_keys(ram: GuestRam, pa: int, seed: int) -> None:
    """Ten pointer-authentication key registers at ``pa``: fixed numbers made from ``seed``."""
    value = seed
    for index in range(_KEY_REGISTERS):
        value = (value * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        ram.write_u64(pa + 8 * index, value)
