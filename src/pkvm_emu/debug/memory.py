"""Guest memory as a debugger sees it: by virtual address at either level, or by physical address.

An address is looked up in the regime that the CPU is in, then in the other one: the two halves of a module lie at addresses that
the other level does not map, so both can be read wherever the CPU stands. The host's stage-2 does not hide anything from
the debugger (it maps one to one, and only what the host has touched); a guest's stage-2 translates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.debug.breakpoints import regime_of
from pkvm_emu.debug.placement import foreseen
from pkvm_emu.machine.pagetable import LAST_LEVEL as _LAST_LEVEL
from pkvm_emu.machine.pagetable import PhysMem
from pkvm_emu.machine.walk import (
    Fault,
    FaultKind,
    Regime,
    Stage1Regs,
    Stage2Regs,
    Translation,
    translate_stage1,
    translate_stage2,
)

if TYPE_CHECKING:
    from pkvm_emu.debug.window import Window
    from pkvm_emu.system import System

PAGE_SIZE = 4096
_HCR_VM, _HCR_E2H = 1 << 0, 1 << 34
_VMID_AND_CNP = 0xFFFF_0000_0000_0001
_REGISTERS = (
    "HCR_EL2", "VTTBR_EL2", "VTCR_EL2", "SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1",
    "SCTLR_EL2", "TCR_EL2", "TTBR0_EL2", "TTBR1_EL2",
)  # fmt: skip


class Extent(NamedTuple):
    """A stretch of virtual memory with one answer.

    Attributes:
        start, end: VAs; the end is outside.
        leaf: the translation of its first byte, or None where nothing is mapped.
    """

    start: int
    end: int
    leaf: Translation | None


class Entry(NamedTuple):
    """One table entry that a walk read: its level, PA and contents."""

    level: int
    address: int
    descriptor: int

    @property
    def kind(self) -> str:
        """What the walker takes it for."""
        if not self.descriptor & 1:
            return "invalid"
        if self.level == _LAST_LEVEL:
            return "page" if self.descriptor & 2 else "reserved"
        return "table" if self.descriptor & 2 else "block"


class _Recorder:
    """Physical memory that remembers which words were read."""

    def __init__(self, ram: PhysMem) -> None:
        self._ram = ram
        self.reads: list[tuple[int, int]] = []

    def read_u64(self, pa: int) -> int:
        """The word at ``pa``."""
        value = self._ram.read_u64(pa)
        self.reads.append((pa, value))
        return value

    def write_u64(self, pa: int, value: int) -> None:
        """As of the memory behind."""
        self._ram.write_u64(pa, value)

    def read(self, pa: int, n: int) -> bytes:
        """As of the memory behind."""
        return self._ram.read(pa, n)

    def write(self, pa: int, data: bytes) -> None:
        """As of the memory behind."""
        self._ram.write(pa, data)


class DebugMemory:
    """The memory of a system.

    Args:
        system: whose.
        window: answers reads of addresses that no guest memory has.

    Attributes:
        physical: addresses are physical (``Qqemu.PhyMemMode``).
        level: the regime (1 or 2) that is asked first; None: that of the CPU.
    """

    def __init__(self, system: System, window: Window) -> None:
        self._system = system
        self._machine = system.machine
        self._window = window
        self._registers = system.machine.engine.batch(*_REGISTERS)
        self.physical = False
        self.level: int | None = None
        #: Told of each change, with a function that makes it again.
        self.on_edit: Callable[[Callable[[], None]], None] | None = None

    # Translation

    def current_regime(self) -> int:
        """The regime of the CPU on the engine."""
        return regime_of(self._machine.core.el)

    def walk(self, va: int, regime: int) -> Translation | Fault:
        """What one regime makes of an address, by its tables; ``pa`` is physical."""
        return self._walk(self._machine.ram, va, regime)

    def walk_hits(self, va: int, regime: int) -> bool:
        """Whether a regime maps an address."""
        return isinstance(self.walk(va, regime), Translation)

    def path(self, va: int, regime: int) -> tuple[list[Entry], Translation | Fault]:
        """The entries that the walk of stage 1 reads, and its end."""
        memory = _Recorder(self._machine.ram)
        end = self._walk(memory, va, regime)
        return _entries(memory.reads, end.level), end

    def host_path(self, ipa: int) -> tuple[list[Entry], Translation | Fault]:
        """The same for the host's stage-2."""
        memory = _Recorder(self._machine.ram)
        vtcr = self._registers.snapshot()[2]
        end = translate_stage2(memory, ipa, vttbr=self._system.hyp.host.table.root, vtcr=vtcr)
        return _entries(memory.reads, end.level), end

    def _walk(self, memory: PhysMem, va: int, regime: int) -> Translation | Fault:
        hcr, vttbr, vtcr, sctlr1, tcr1, ttbr0, ttbr1, sctlr2, tcr2, ttbr0_el2, ttbr1_el2 = self._registers.snapshot()
        try:
            if regime == 2:
                kind = Regime.EL20 if hcr & _HCR_E2H else Regime.EL2
                return translate_stage1(memory, va, Stage1Regs(ttbr0_el2, tcr2, ttbr1_el2, sctlr2, kind))
            stage2 = self._guest_stage2(hcr, vttbr, vtcr)
            first = translate_stage1(memory, va, Stage1Regs(ttbr0, tcr1, ttbr1, sctlr1), stage2=stage2)
            if isinstance(first, Fault) or stage2 is None:
                return first
            second = translate_stage2(memory, first.pa, vttbr=vttbr, vtcr=vtcr, hcr=hcr)
            return second if isinstance(second, Fault) else first._replace(pa=second.pa)
        except IndexError:
            # A table that is not in RAM.
            return Fault(FaultKind.ADDRESS_SIZE, 1, 0, va, 0)

    def _guest_stage2(self, hcr: int, vttbr: int, vtcr: int) -> Stage2Regs | None:
        """The stage-2 that EL1 is behind, unless it is the host's, which maps one to one."""
        if not hcr & _HCR_VM or (vttbr & ~_VMID_AND_CNP) == self._system.hyp.host.table.root:
            return None
        return Stage2Regs(vttbr, vtcr, hcr)

    def translate(self, va: int, regime: int) -> int | None:
        """The physical address of ``va``, or None."""
        found = self.walk(va, regime)
        return None if isinstance(found, Fault) else found.pa

    def locate(self, va: int) -> tuple[int, int] | None:
        """The regime that maps ``va``, the preferred one first, and the physical address."""
        first = self.level or self.current_regime()
        for regime in (first, 3 - first):
            pa = self.translate(va, regime)
            if pa is not None:
                return regime, pa
        return None

    def level_of(self, va: int) -> int:
        """The regime that a breakpoint at ``va`` belongs to.

        The level that was chosen by command; else EL2 for what lies in the hypervisor's own code, its ops or the EL2 half of
        a module, EL1 for the upper half of the address space; else where it is mapped, that of the CPU first.
        """
        if self.level is not None:
            return self.level
        symbols = self._system.symbols
        if va >> 55 & 1:
            return 1
        if symbols.el2(va) is not None or foreseen(self._system, va) is not None:
            return 2
        found = self.locate(va)
        return found[0] if found is not None else self.current_regime()

    # Access

    def read(self, va: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer where something is not mapped or is no RAM, none where nothing is there."""
        out = bytearray()
        while len(out) < size:
            at = va + len(out)
            if self._window.covers(at):
                out += self._window.read(at, size - len(out))
                break
            pa = self._to_pa(at)
            if pa is None or pa not in self._machine.ram:
                break
            out += self._machine.ram.read(pa, min(size - len(out), PAGE_SIZE - (pa & PAGE_SIZE - 1)))
        return bytes(out)

    def write(self, va: int, data: bytes) -> bool:
        """Write; False (and nothing written) where part of it is not RAM. Code and page tables take effect at once."""
        pieces = self.pieces(va, len(data))
        if pieces is None:
            return False
        self._store(pieces, data)
        if self.on_edit is not None:
            self.on_edit(lambda: self._store(pieces, data))
        return True

    def _store(self, pieces: list[tuple[int, int]], data: bytes) -> None:
        position = 0
        for pa, size in pieces:
            self._machine.ram.write(pa, data[position : position + size])
            position += size
        self._machine.core.code_epoch += 1
        self._machine.engine.flush_code()
        self._machine.engine.flush_tlb()

    def pieces(self, va: int, size: int) -> list[tuple[int, int]] | None:
        """``(pa, bytes)`` of the RAM behind a range, or None where part of it is not RAM."""
        found = []
        position = 0
        while position < size:
            pa = self._to_pa(va + position)
            if pa is None or pa not in self._machine.ram:
                return None
            length = min(size - position, PAGE_SIZE - (pa & PAGE_SIZE - 1))
            found.append((pa, length))
            position += length
        return found

    def _to_pa(self, address: int) -> int | None:
        address &= (1 << 64) - 1
        if self.physical:
            return address
        found = self.locate(address)
        if found is not None:
            return found[1]
        copy = foreseen(self._system, address)
        return None if copy is None else self.translate(copy, 1)

    # Regions

    def extent(self, va: int) -> Extent:
        """The stretch around ``va`` that is mapped alike, or that is not mapped at all."""
        regime = self._regime_at(va)
        here = self.walk(va, regime)
        start = va & -self._span(here)
        end, count = start, 0
        while count < 4096 and end < 1 << 64:
            found = self.walk(end, regime)
            if not _is_alike(here, found):
                break
            end = (end & -self._span(found)) + self._span(found)
            count += 1
        return Extent(start, min(end, 1 << 64), None if isinstance(here, Fault) else here)

    def _regime_at(self, va: int) -> int:
        found = self.locate(va)
        return found[0] if found is not None else self.level or self.current_regime()

    @staticmethod
    def _span(found: Translation | Fault) -> int:
        """Bytes that one entry at the level of this answer stands for."""
        return 1 << (12 + 9 * (3 - max(found.level, 0)))


def _entries(reads: list[tuple[int, int]], last: int) -> list[Entry]:
    first = last - len(reads) + 1
    return [Entry(first + index, pa, value) for index, (pa, value) in enumerate(reads)]


def _is_alike(first: Translation | Fault, second: Translation | Fault) -> bool:
    if isinstance(first, Fault) or isinstance(second, Fault):
        return isinstance(first, Fault) and isinstance(second, Fault)
    return (first.writable, first.executable) == (second.writable, second.executable)
