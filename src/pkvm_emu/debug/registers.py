"""The registers of a CPU by name and by the number that the protocol gives them, readable and writable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.arch.sysreg import SYSREGS

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

CORE, FPU, PAUTH = "org.gnu.gdb.aarch64.core", "org.gnu.gdb.aarch64.fpu", "org.gnu.gdb.aarch64.pauth"
SYSTEM = "org.pkvm-emu.el"
_GENERAL = tuple(f"x{n}" for n in range(31))
_VECTORS = tuple(f"v{n}" for n in range(32))
_MASKS = ("pauth_dmask", "pauth_cmask", "pauth_dmask_high", "pauth_cmask_high")
#: System registers that the engine's CPU has, by exception level, in the order of ``info registers``.
_BY_EL = {
    1: """SCTLR_EL1 ACTLR_EL1 CPACR_EL1 TTBR0_EL1 TTBR1_EL1 TCR_EL1 MAIR_EL1 AMAIR_EL1 CONTEXTIDR_EL1 PAR_EL1 SPSR_EL1 ELR_EL1
        SP_EL0 ESR_EL1 FAR_EL1 AFSR0_EL1 AFSR1_EL1 VBAR_EL1 ISR_EL1 TPIDR_EL0 TPIDRRO_EL0 TPIDR_EL1 CNTKCTL_EL1
        APIAKEYLO_EL1 APIAKEYHI_EL1 APIBKEYLO_EL1 APIBKEYHI_EL1 APDAKEYLO_EL1 APDAKEYHI_EL1 APDBKEYLO_EL1 APDBKEYHI_EL1
        APGAKEYLO_EL1 APGAKEYHI_EL1 MIDR_EL1 MPIDR_EL1 ID_AA64PFR0_EL1 ID_AA64PFR1_EL1 ID_AA64ISAR0_EL1 ID_AA64ISAR1_EL1
        ID_AA64MMFR0_EL1 ID_AA64MMFR1_EL1 ID_AA64MMFR2_EL1 CTR_EL0 DCZID_EL0 CNTFRQ_EL0""",
    2: """HCR_EL2 SCTLR_EL2 ACTLR_EL2 CPTR_EL2 HACR_EL2 HSTR_EL2 MDCR_EL2 TTBR0_EL2 TTBR1_EL2 TCR_EL2 VTTBR_EL2 VTCR_EL2
        MAIR_EL2 AMAIR_EL2 CONTEXTIDR_EL2 SPSR_EL2 ELR_EL2 SP_EL1 ESR_EL2 FAR_EL2 HPFAR_EL2 AFSR0_EL2 AFSR1_EL2 VBAR_EL2
        TPIDR_EL2 VPIDR_EL2 VMPIDR_EL2 CNTVOFF_EL2 CNTHCTL_EL2""",
    3: "SCR_EL3 SCTLR_EL3 CPTR_EL3 MDCR_EL3 SPSR_EL3 ELR_EL3 SP_EL2 ESR_EL3 FAR_EL3 VBAR_EL3 TPIDR_EL3",
}
_BANKS = {"SP_EL0": 0, "SP_EL1": 1, "SP_EL2": 2}
#: Registers whose value decides what addresses mean.
_TRANSLATING = frozenset(
    (
        "SCTLR_EL1", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "CONTEXTIDR_EL1", "HCR_EL2", "SCTLR_EL2",
        "TTBR0_EL2", "TTBR1_EL2", "TCR_EL2", "VTTBR_EL2", "VTCR_EL2", "MAIR_EL2", "SCR_EL3",
    )
)  # fmt: skip
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
#: Bits of a pointer above the address and beside bit 55.
_TOP = 0xFF7F_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Register:
    """One register.

    Attributes:
        number: in the protocol.
        name: ``x0`` to ``x30``, ``sp``, ``pc``, ``cpsr``, ``v0`` to ``v31``, ``fpsr``, ``fpcr``, the PAC masks, or a system
            register by the architecture's name.
        bits: 32, 64 or 128.
        feature: of the target description.
    """

    number: int
    name: str
    bits: int
    feature: str


def _all_registers() -> tuple[Register, ...]:
    rows: list[tuple[str, int, str]] = [(name, 64, CORE) for name in (*_GENERAL, "sp", "pc")]
    rows.append(("cpsr", 32, CORE))
    rows += [(name, 128, FPU) for name in _VECTORS]
    rows += [("fpsr", 32, FPU), ("fpcr", 32, FPU)]
    rows += [(name, 64, PAUTH) for name in _MASKS]
    rows += [(name, 64, f"{SYSTEM}{el}") for el, names in _BY_EL.items() for name in names.split()]
    return tuple(Register(number, *row) for number, row in enumerate(rows))


REGISTERS = _all_registers()
BY_NAME = {register.name: register for register in REGISTERS}
#: How many of them a ``g`` packet has: all but the system registers.
IN_G = sum(not register.feature.startswith(SYSTEM) for register in REGISTERS)


class RegisterFile:
    """The registers of the CPUs of one machine. Only while the engine does not run.

    Args:
        machine: whose.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._engine = machine.engine
        self._core = machine.engine.batch(*_GENERAL, "sp", "pc", "pstate")
        #: Told of each change, with a function that makes it again.
        self.on_edit: Callable[[Callable[[], None]], None] | None = None

    def read(self, cpu: int, name: str) -> int:
        """One register of a CPU that is on.

        Raises:
            KeyError: no such register.
            UsageError: no such CPU, or it is off.
        """
        return self.read_many(cpu, [BY_NAME[name]])[0]

    def read_many(self, cpu: int, registers: Sequence[Register]) -> list[int]:
        """Several; errors as for :meth:`read`."""
        if cpu == self._machine.current.index:
            return self._read(registers)
        with self._machine.on_cpu(cpu):
            return self._read(registers)

    def write(self, cpu: int, name: str, value: int) -> None:
        """Write one register, with the effect that an MSR has; errors as for :meth:`read`."""
        register = BY_NAME[name]
        value &= (1 << register.bits) - 1
        before = self.read(cpu, name) if self.on_edit is not None else None
        self._write_on(cpu, register, value)
        if self.on_edit is not None and before != value:
            self.on_edit(lambda: self._write_on(cpu, register, value))

    def _write_on(self, cpu: int, register: Register, value: int) -> None:
        with self._machine.on_cpu(cpu):
            self._write(register, value)

    def _read(self, registers: Sequence[Register]) -> list[int]:
        values = self._core.read()[:]
        return [values[r.number] & _MASK64 if r.number < 33 else self._read_other(r, values[33]) for r in registers]

    def _read_other(self, register: Register, pstate: int) -> int:
        name, engine = register.name, self._engine
        if name == "cpsr":
            return pstate & _MASK32
        if register.feature == FPU:
            return engine.read_vector(int(name[1:])) if register.bits == 128 else engine.read(name) & _MASK32
        if register.feature == PAUTH:
            return self._pac_mask(is_high=name.endswith("_high"))
        if _BANKS.get(name) == _bank(pstate):
            return engine.read("sp")
        return engine.read_sysreg(name)

    def _pac_mask(self, is_high: bool) -> int:
        """The bits of a pointer that may hold a PAC: in the lower half of EL2's addresses, or the upper half of EL1's."""
        engine = self._engine
        if is_high:
            bits = 64 - (engine.read_sysreg("TCR_EL1") >> 16 & 0x3F)
        else:
            bits = 64 - (engine.read_sysreg("TCR_EL2") & 0x3F)
        return _TOP & ~((1 << bits) - 1) if 16 <= bits < 64 else 0

    def _write(self, register: Register, value: int) -> None:
        name, engine = register.name, self._engine
        if register.feature == CORE:
            if name == "cpsr":
                self._write_pstate(value)
            else:
                engine.write(name, value)
        elif register.feature == FPU:
            if register.bits == 128:
                engine.write_vector(int(name[1:]), value)
            else:
                engine.write(name, value)
        elif register.feature.startswith(SYSTEM):
            if _BANKS.get(name) == _bank(engine.read("pstate")):
                engine.write("sp", value)
                return
            engine.write_sysreg(name, value)
            if name in _TRANSLATING:
                engine.flush_tlb()

    def _write_pstate(self, value: int) -> None:
        engine = self._engine
        old, new = _bank(engine.read("pstate")), _bank(value)
        if value >> 2 & 3 > 2:
            value = value & ~0xF | engine.read("pstate") & 0xF
            new = old
        if old != new:
            engine.write(f"sp_el{old}", engine.read("sp"))
        engine.set_pstate(value)
        if old != new:
            engine.write("sp", engine.read(f"sp_el{new}"))


def _bank(pstate: int) -> int:
    """Which SP_ELx is in use."""
    return pstate >> 2 & 3 if pstate & 1 else 0


def group_of(register: Register) -> str:
    """The group in ``info registers GROUP``."""
    if register.feature.startswith(SYSTEM):
        return f"el{register.feature[len(SYSTEM) :]}"
    return "float" if register.feature == FPU else "general"


def document(register: Register) -> str:
    """What a system register holds, in a few words."""
    found = SYSREGS.get(register.name)
    return found.doc if found is not None else ""
