"""The borders of EL2: what it is entered for, and the way back to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.arch.esr import ExceptionClass
from pkvm_emu.firmware import image as firmware

if TYPE_CHECKING:
    from pkvm_emu.machine.exceptions import Taken
    from pkvm_emu.system import System

_ERET = 0xD69F03E0
_EC_SHIFT = 26
_HCALL_BASE, _HINT = 0xC600_0000, 1 << 16
_REGISTERS = 18


class Entry(NamedTuple):
    """EL2 as it was entered.

    Attributes:
        kind: ``init`` (of a module), ``hypercall`` (of a module), ``core`` (one of the hypervisor's own), ``smc``, ``trap``.
        name: in words.
        registers: x0 to x17 of the host.
        cpu: index of the CPU.
    """

    kind: str
    name: str
    registers: tuple[int, ...]
    cpu: int


class Borders:
    """Tells of every entry into EL2 from EL1 and of the return.

    Args:
        system: the system.
        entered: called with the entry.
        left: called with the entry and x0 to x17 right before the ERET.
    """

    def __init__(
        self, system: System, entered: Callable[[Entry], None], left: Callable[[Entry, tuple[int, ...]], None]
    ) -> None:
        self._system = system
        self._entered, self._left = entered, left
        self._registers = system.machine.engine.batch(*[f"x{n}" for n in range(_REGISTERS)])
        self._open: dict[int, Entry] = {}
        core = system.machine.core
        inner = core.on_exception

        def taken(taken: Taken) -> None:
            if inner is not None:
                inner(taken)
            if taken.target_el == 2 and taken.source_el != 2:
                self._enter(taken)

        core.on_exception = taken
        base, code = system.hyp.entry("hyp_vectors"), firmware.load("el2").code
        for offset in range(0, len(code), 4):
            if int.from_bytes(code[offset : offset + 4], "little") == _ERET:
                system.machine.engine.hook_code(base + offset, base + offset, self._return)

    @property
    def current(self) -> Entry | None:
        """What EL2 was entered for on this CPU, while it is there."""
        return self._open.get(self._system.machine.current.index)

    def forget(self) -> None:
        """Nothing runs (a snapshot was restored)."""
        self._open.clear()

    def _enter(self, taken: Taken) -> None:
        registers = tuple(self._registers.read()[:])
        kind, name = self._classify(taken, registers)
        entry = Entry(kind, name, registers, self._system.machine.current.index)
        self._open[entry.cpu] = entry
        self._entered(entry)

    def _return(self, _pc: int) -> None:
        index = self._system.machine.current.index
        entry = self._open.get(index)
        if entry is not None:
            self._left(entry, tuple(self._registers.read()[:]))
            del self._open[index]

    def _classify(self, taken: Taken, registers: tuple[int, ...]) -> tuple[str, str]:
        kind = taken.syndrome >> _EC_SHIFT
        if kind == ExceptionClass.SMC64:
            return "smc", f"SMC {registers[0] & 0xFFFF_FFFF:#x}"
        if kind != ExceptionClass.HVC64:
            return "trap", self._trap(taken)
        number = (registers[0] & ~_HINT) - _HCALL_BASE
        core = self._system.hyp.traps.name_of(number)
        if core is not None:
            return ("init", "the EL2 init of a module") if core.endswith("init_module") else ("core", core)
        for module in self._system.modules.values():
            for name, registered in module.hypercalls.items():
                if registered == number:
                    return "hypercall", f"hypercall {name} [{module.name}]"
        return "hypercall", f"hypercall {number}"

    def _trap(self, taken: Taken) -> str:
        kind = taken.syndrome >> _EC_SHIFT
        if kind in (ExceptionClass.DABT_LOW, ExceptionClass.IABT_LOW):
            ipa = (self._system.machine.engine.read_sysreg("HPFAR_EL2") >> 4 & (1 << 40) - 1) << 12
            what = "fetch" if kind == ExceptionClass.IABT_LOW else "store" if taken.syndrome & 1 << 6 else "load"
            return f"a stage-2 fault of the host ({what} in page {ipa:#x})"
        return f"a trap of the host (syndrome {taken.syndrome:#x})"
