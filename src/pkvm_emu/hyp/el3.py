"""EL3 firmware: what answers an SMC that leaves the hypervisor, and a record of those that nobody answers.

An SMC comes from EL2 code itself or is one of the host's that the hypervisor forwards. Asked in this order: handlers of the user
(:meth:`El3Firmware.serve`, ``--smc``), PSCI, then with the ``full`` profile the other services. Source of the convention:
Arm DEN 0028: the function id is W0, its SVE hint does not count; calls of SMC32 form have 32-bit arguments; registers that a
call does not return keep their values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pkvm_emu.arch.smccc import MASK64, SMCCC_RET_NOT_SUPPORTED, SVE_HINT, call_name
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.el3_psci import El3Psci
from pkvm_emu.machine.profile import EL3_PROFILES
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.el3_sdei import El3Sdei
    from pkvm_emu.hyp.el3_spmc import El3Spmc
    from pkvm_emu.hyp.hypervisor import Hypervisor

_REGISTERS = 18
_MASK32 = 0xFFFF_FFFF
_SMC64 = 1 << 30
_ARGUMENTS = 7
#: A module that prints by SMC makes one for each character.
LOG_LINES = 4096
_HEADER_LINE = re.compile(r"\.h:\d+\)$")
#: Instructions behind an SMC among which the code of the function around it goes on.
_INLINE_LIMIT = 16
_INSTRUCTION = 4
#: The EL1 firmware's code through which Python makes SMCs.
_FROM_PYTHON = "host_smc"

Answer = int | tuple[int, ...] | None
SmcHandler = Callable[[tuple[int, ...]], tuple[int, ...] | None]


class El3Service(Protocol):
    """One service of the firmware."""

    def answer(self, function: int, x: tuple[int, ...]) -> Answer:
        """x0, or x0, x1, ... after a call; None for one of another service.

        Args:
            function: the id, without hint.
            x: x0 to x17; of a call in SMC32 form their low halves.
        """


class Unanswered(NamedTuple):
    """An SMC that nobody answered.

    Attributes:
        function: its id, without hint.
        times: how often it came.
        caller: who made the first: symbol and offset, source line where there is one.
        arguments: x1 to x7 of the first.
    """

    function: int
    times: int
    caller: str
    arguments: tuple[int, ...]

    @property
    def name(self) -> str:
        """What it is called: ``sip 0x834``."""
        return call_name(self.function)

    def as_dict(self) -> dict[str, Any]:
        """The record for programs."""
        return {
            "name": self.name,
            "function": self.function,
            "count": self.times,
            "caller": self.caller,
            "arguments": list(self.arguments),
        }

    def __str__(self) -> str:
        given = list(self.arguments)
        while given and not given[-1]:
            given.pop()
        times = f", {self.times} times" if self.times > 1 else ""
        return f"{self.function:#010x} {self.name}({', '.join(map(hex, given))}) from {self.caller}{times}"


class El3Firmware(State):
    """The firmware of one machine: profile ``bare`` is PSCI 1.1 and NOT_SUPPORTED for everything else, ``full`` adds SMCCC 1.2,
    TRNG, SDEI and an FF-A SPMC.

    Args:
        hyp: the hypervisor below it.

    Attributes:
        unanswered: what nobody answered, by function id, in the order it first came.
        log: what tables and handlers of the user reported: the first :data:`LOG_LINES` lines.
        unlogged: lines that were more than that.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        machine = hyp.machine
        super().__init__(machine.journal, "el3")
        self._hyp, self._machine = hyp, machine
        self._psci = El3Psci(machine)
        self._args = machine.engine.batch(*[f"x{n}" for n in range(_REGISTERS)])
        self._handlers: list[SmcHandler] = []
        self._services: list[El3Service] = []
        self._sdei: El3Sdei | None = None
        self._spmc: El3Spmc | None = None
        self.unanswered: StateDict[int, Unanswered] = StateDict(machine.journal, "el3.unanswered")
        self.log: StateList[str] = StateList(machine.journal, "el3.log")
        self.unlogged = 0
        self._profile = machine.profile.el3
        if self._profile not in EL3_PROFILES:
            raise UsageError(f"no EL3 profile is called {self._profile!r}; there are: {', '.join(EL3_PROFILES)}")
        if self._profile == "full":
            self._fill()
        machine.core.on_smc = self._smc

    def _fill(self) -> None:
        from pkvm_emu.hyp.el3_arch import El3Arch
        from pkvm_emu.hyp.el3_sdei import El3Sdei
        from pkvm_emu.hyp.el3_spmc import El3Spmc
        from pkvm_emu.hyp.el3_trng import El3Trng

        self._psci.knows_smccc = True
        self._sdei, self._spmc = El3Sdei(self._machine), El3Spmc(self._machine)
        self._services = [El3Arch(), El3Trng(self._machine), self._sdei, self._spmc]

    @property
    def profile(self) -> str:
        """``bare`` or ``full``."""
        return self._profile

    @property
    def psci(self) -> El3Psci:
        """Its PSCI implementation."""
        return self._psci

    @property
    def sdei(self) -> El3Sdei:
        """Its SDEI dispatcher.

        Raises:
            UsageError: the profile has none.
        """
        if self._sdei is None:
            raise UsageError("the bare EL3 has no SDEI: boot with el3='full' (--el3 full)")
        return self._sdei

    @property
    def spmc(self) -> El3Spmc:
        """Its secure partition manager.

        Raises:
            UsageError: the profile has none.
        """
        if self._spmc is None:
            raise UsageError("the bare EL3 has no SPMC: boot with el3='full' (--el3 full)")
        return self._spmc

    @property
    def handlers(self) -> tuple[SmcHandler, ...]:
        """What :meth:`serve` registered, in order. Handlers are no part of snapshots."""
        return tuple(self._handlers)

    def replace_handlers(self, handlers: tuple[SmcHandler, ...]) -> None:
        """Ask these, and no others."""
        self._handlers = list(handlers)

    def serve(self, handler: SmcHandler) -> None:
        """Answer SMCs with ``handler(x0..x17) -> x0.. or None``; asked before the firmware's own services, in order."""
        self._handlers.append(handler)

    def note(self, text: str) -> None:
        """Put a line into the log."""
        if len(self.log) < LOG_LINES:
            self.log.append(text)
        else:
            self.unlogged += 1

    # Calls

    def _smc(self) -> None:
        values = self._args.read()
        answer = self.answer(tuple(values))
        for index, value in enumerate(answer):
            values[index] = value & MASK64
        self._args.write()

    def answer(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """The registers after an SMC with these; one that nobody answers is recorded."""
        answer = self.ask(registers)
        if answer is not None:
            return answer
        function = registers[0] & _MASK32 & ~SVE_HINT
        known = self.unanswered.get(function)
        if known is None:
            known = Unanswered(function, 0, self.caller(), registers[1 : _ARGUMENTS + 1])
        self.unanswered[function] = known._replace(times=known.times + 1)
        return (SMCCC_RET_NOT_SUPPORTED,)

    def ask(self, registers: tuple[int, ...]) -> tuple[int, ...] | None:
        """As :meth:`answer`, but None where nobody answers: what firmware-aware code of the hypervisor itself asks by."""
        for handler in self._handlers:
            answer = handler(registers)
            if answer is not None:
                return answer
        function = registers[0] & _MASK32 & ~SVE_HINT
        status = self._psci.answer(function, registers)
        if status is not None:
            return (status,)
        given = registers if function & _SMC64 else tuple(value & _MASK32 for value in registers)
        for service in self._services:
            found = service.answer(function, given)
            if found is not None:
                return found if isinstance(found, tuple) else (found,)
        return None

    def caller(self) -> str:
        """Who makes the SMC that is being answered: the code at EL2, or the host's where the hypervisor forwards."""
        hyp, core = self._hyp, self._machine.core
        pc = self._machine.engine.read("pc") - _INSTRUCTION
        if core.el != 2:
            return self._place(pc, core.el)
        forwarded = hyp.entry("forward_smc") <= pc < hyp.entry("cpu_entry")
        if not forwarded:
            return self._place(pc, 2)
        if core.smc_caller is not None:
            return self._place(core.smc_caller, 1)
        where = self._place(self._machine.engine.read("elr_el2"), 1)
        return "Python" if where.startswith(_FROM_PYTHON) else where

    def _place(self, va: int, el: int) -> str:
        """An address in words. SMCs are inline functions of a header: the line is that of the function around it."""
        describe = self._machine.core.describe
        text = describe(va, el)
        name, bracket, _ = text.rpartition(" (")
        if not bracket or not _HEADER_LINE.search(text):
            return text
        function = name.partition("+")[0]
        for behind in range(1, _INLINE_LIMIT):
            later, _, line = describe(va + _INSTRUCTION * behind, el).rpartition(" (")
            if later.partition("+")[0] != function:
                break
            if not _HEADER_LINE.search(line):
                return f"{name} ({line}"
        return text
