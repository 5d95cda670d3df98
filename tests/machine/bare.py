"""A machine with page tables and exit stubs and nothing else: no kernel, no hypervisor, only what a test assembles."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pkvm_emu.arch.insn import hvc, ret
from pkvm_emu.firmware.assemble import assemble
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.pagetable import BumpAllocator, PageTable
from pkvm_emu.machine.profile import MachineProfile

RAM_BASE, RAM_SIZE = 0x4000_0000, 64 << 20
PAGE = 4096

# EL1: 39-bit upper range. Every 4 KiB area of the machine at its own VA.
EL1_BASE = 0xFFFF_FF80_0000_0000
EL2_BASE = 0x1234_5600_0000
#: The same offsets are used for the physical address, the EL1 VA and the EL2 VA of an area.
VECTORS, CODE, DATA, STACK, RODATA, STAGE2_HOLE, STAGE2_RO = (
    0x1000,
    0x10000,
    0x20000,
    0x32000,
    0x40000,
    0x50000,
    0x60000,
)
ALIAS, UNMAPPED, DATA_NX_STAGE2, WITHOUT_RAM, SCRATCH_ENTRY = 0x70000, 0x80000, 0x90000, 0xA0000, 0xF000
_TABLES = RAM_BASE + (32 << 20)

_AF_SH = 1 << 10 | 3 << 8
_EL1_RX, _EL1_RO, _EL1_RW = _AF_SH | 1 << 7 | 1 << 54, _AF_SH | 1 << 7 | 3 << 53, _AF_SH | 3 << 53
# Both XN bits: with HCR_EL2.E2H the EL2 regime has PXN and UXN, without it only bit 54 counts.
_EL2_RX, _EL2_RO, _EL2_RW = _AF_SH | 1 << 7, _AF_SH | 1 << 7 | 3 << 53, _AF_SH | 3 << 53
_S2_RWX, _S2_RO, _S2_NX = 0x4FC | 3 << 8, 0x47C | 3 << 8, 0x4FC | 3 << 8 | 1 << 54
_TCR_EL1 = 25 | 25 << 16 | 2 << 30 | 5 << 32 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 24 | 1 << 26 | 3 << 28
_MAIR = 0x0000_0004_0044_FFFF

EL1H, EL1T, EL2H, EL2T, EL0T = 0x3C5, 0x3C4, 0x3C9, 0x3C8, 0x3C0
HCR_VM, HCR_TSC, HCR_TACR, HCR_RW, HCR_E2H, HCR_TWI = 1 << 0, 1 << 19, 1 << 21, 1 << 31, 1 << 34, 1 << 13
HCR_APK, HCR_API = 1 << 40, 1 << 41


@dataclass(frozen=True)
class Entry:
    """What the registers said at the first instruction of a vector."""

    el: int
    vector: int
    esr: int
    far: int
    hpfar: int
    spsr: int
    elr: int
    sp: int
    pstate: int

    @property
    def ec(self) -> int:
        return self.esr >> 26

    @property
    def il(self) -> int:
        return self.esr >> 25 & 1

    @property
    def iss(self) -> int:
        return self.esr & 0x1FF_FFFF


class Bare:
    """The machine; ``hvhe`` sets HCR_EL2.E2H and the EL1 layout of TCR_EL2. All ``cpus`` are set up alike."""

    def __init__(self, hvhe: bool = True, cpus: int = 1) -> None:
        self.machine = machine = Machine(MachineProfile(hvhe=hvhe, ram_base=RAM_BASE, ram_size=RAM_SIZE, cpus=cpus))
        self.engine, self.core, self.ram = machine.engine, machine.core, machine.ram
        pages = BumpAllocator(_TABLES, _TABLES + (8 << 20))
        flush = self.engine.flush_tlb
        self.el1 = PageTable(self.ram, pages, 39, va_base=EL1_BASE, flush=flush)
        self.el0 = PageTable(self.ram, pages, 39, flush=flush)
        self.el2 = PageTable(self.ram, pages, 48, flush=flush)
        # The root of 44 bits at level 0 fills part of one page.
        self.stage2 = PageTable(self.ram, pages, 44, start_level=0, flush=flush)
        for offset, prot1, prot2 in (
            (VECTORS, _EL1_RX, _EL2_RX),
            (SCRATCH_ENTRY, _EL1_RX, _EL2_RX),
            (CODE, _EL1_RX, _EL2_RX),
            (DATA, _EL1_RW, _EL2_RW),
            (STACK - PAGE, _EL1_RW, _EL2_RW),
            (RODATA, _EL1_RO, _EL2_RO),
            (STAGE2_HOLE, _EL1_RW, _EL2_RW),
            (STAGE2_RO, _EL1_RW, _EL2_RW),
            (DATA_NX_STAGE2, _EL1_RX, _EL2_RX),
        ):
            self.el1.map(EL1_BASE + offset, self.pa(offset, 1), PAGE, prot1)
            self.el2.map(EL2_BASE + offset, self.pa(offset, 2), PAGE, prot2)
        # The code page once more, writable: how a kernel patches its text.
        self.el1.map(EL1_BASE + ALIAS, self.pa(CODE, 1), PAGE, _EL1_RW)
        self.el2.map(EL2_BASE + ALIAS, self.pa(CODE, 2), PAGE, _EL2_RW)
        self.el1.map(EL1_BASE + WITHOUT_RAM, RAM_BASE + RAM_SIZE + (16 << 20), PAGE, _EL1_RW)
        self.el0.map(CODE, self.pa(CODE, 1), PAGE, _AF_SH | 1 << 6 | 1 << 7 | 1 << 53)
        self.stage2.map(RAM_BASE, RAM_BASE, RAM_SIZE, _S2_RWX, max_block_level=2)
        self.stage2.map(RAM_BASE + RAM_SIZE, RAM_BASE + RAM_SIZE, 32 << 20, _S2_RWX, max_block_level=2)
        self.stage2.unmap(self.pa(STAGE2_HOLE, 1), PAGE)
        self.stage2.map(self.pa(STAGE2_RO, 1), self.pa(STAGE2_RO, 1), PAGE, _S2_RO)
        self.stage2.map(self.pa(DATA_NX_STAGE2, 1), self.pa(DATA_NX_STAGE2, 1), PAGE, _S2_NX)
        for index in reversed(range(cpus)):
            machine.switch_to(index)
            self._set_registers(hvhe)
        self._make_exits()

    @staticmethod
    def pa(offset: int, el: int) -> int:
        """Physical address of an area: EL1 and EL2 have their own."""
        return RAM_BASE + (el << 20) + offset

    @staticmethod
    def va(offset: int, el: int) -> int:
        """Virtual address of an area."""
        return (EL1_BASE if el == 1 else EL2_BASE) + offset

    def _set_registers(self, hvhe: bool) -> None:
        engine = self.engine
        engine.write_sysreg("HCR_EL2", HCR_RW | HCR_TSC | HCR_API | HCR_APK | (HCR_E2H if hvhe else 0))
        engine.write_sysreg("MAIR_EL1", _MAIR)
        engine.write_sysreg("MAIR_EL2", _MAIR)
        engine.write_sysreg("TCR_EL1", _TCR_EL1)
        engine.write_sysreg("TTBR0_EL1", self.el0.root)
        engine.write_sysreg("TTBR1_EL1", self.el1.root)
        engine.write_sysreg("SCTLR_EL1", 0x30D0_0800 | 1 | 1 << 2 | 1 << 12 | 1 << 23)
        tcr = 16 | 1 << 8 | 1 << 10 | 3 << 12
        engine.write_sysreg("TCR_EL2", tcr | 1 << 23 | 5 << 32 if hvhe else tcr | 0x8080_0000 | 5 << 16)
        engine.write_sysreg("CPTR_EL2", 3 << 20 if hvhe else 0x33FF)
        engine.write_sysreg("CPACR_EL1", 3 << 20)
        engine.write_sysreg("TTBR0_EL2", self.el2.root)
        engine.write_sysreg("VTCR_EL2", 1 << 31 | 4 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 2 << 6 | 20)
        engine.write_sysreg("VTTBR_EL2", self.stage2.root)
        engine.write_sysreg("SCTLR_EL2", 0x30C5_0830 | 1 | 1 << 2 | 1 << 12)
        engine.write("vbar_el1", self.va(VECTORS, 1))
        engine.write("vbar_el2", self.va(VECTORS, 2))
        engine.write("sp_el1", self.va(STACK, 1))
        engine.write("sp_el2", self.va(STACK, 2))
        engine.write("sp_el0", self.va(STACK, 1) - 0x800)
        engine.flush_tlb()

    def _make_exits(self) -> None:
        for el in (1, 2):
            for offset in range(0, 0x800, 0x80):
                self.ram.write_u32(self.pa(VECTORS, el) + offset, hvc(0x8000))
                self.core.add_exit(self.va(VECTORS, el) + offset, el)
            self.ram.write_u32(self.pa(SCRATCH_ENTRY, el), hvc(0xFFFF))
            self.core.add_exit(self.va(SCRATCH_ENTRY, el), el)

    def set_hcr(self, bits: int) -> None:
        """Set more bits of HCR_EL2."""
        self.engine.write_sysreg("HCR_EL2", self.engine.read_sysreg("HCR_EL2") | bits)

    def load(self, source: str, el: int, area: int = CODE) -> dict[str, int]:
        """Assemble ``source`` into the code page of an exception level; VA of each label."""
        code, labels = assemble_text(source)
        self.machine.patch_code(self.pa(area, el), code)
        return {name: self.va(area, el) + offset for name, offset in labels.items()}

    def stub(self, name: str, el: int, offset: int = 0x800) -> int:
        """Put a service stub into the page of the exit stub; its VA."""
        self.machine.patch_code(
            self.pa(SCRATCH_ENTRY, el) + offset, hvc(0x8000).to_bytes(4, "little") + ret().to_bytes(4, "little")
        )
        return self.va(SCRATCH_ENTRY, el) + offset

    def enter(self, pstate: int) -> None:
        """Put the CPU into the state of an SPSR, with the stack pointer that belongs to it."""
        el = pstate >> 2 & 3
        self.engine.set_pstate(pstate)
        self.engine.write("sp", self.engine.read(f"sp_el{el if pstate & 1 else 0}"))

    def take(self, source: str, pstate: int = EL1H, pc: int | None = None, **registers: int) -> Entry:
        """Run ``source`` until it takes an exception, and say what the vector found."""
        el = max(pstate >> 2 & 3, 1)
        labels = self.load(source, el)
        self.enter(pstate)
        for name, value in registers.items():
            self.engine.write(name, value)
        start = labels.get("start", self.va(CODE, el)) if pc is None else pc
        self.core.run(start)
        return self.entry()

    def entry(self) -> Entry:
        """The state that the exception left."""
        read, sysreg = self.engine.read, self.engine.read_sysreg
        el = read("pstate") >> 2 & 3
        return Entry(
            el=el,
            vector=read("pc") - 4 - self.va(VECTORS, el),
            esr=read(f"esr_el{el}"),
            far=read(f"far_el{el}"),
            hpfar=sysreg("HPFAR_EL2"),
            spsr=sysreg(f"SPSR_EL{el}"),
            elr=read(f"elr_el{el}"),
            sp=read("sp"),
            pstate=read("pstate"),
        )

    def call(self, va: int, *args: int, pstate: int = EL1H) -> tuple[int, ...]:
        """Call code at an exception level as the run loop's users do."""
        self.enter(pstate)
        return self.core.call(va, *args)


def assemble_text(source: str) -> tuple[bytes, dict[str, int]]:
    """Machine code and label offsets of a few instructions; skips the test where there is no assembler."""
    pytest.importorskip("keystone")
    return assemble(source + "\nimage_end:\n")
