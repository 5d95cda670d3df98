"""EL3 firmware: what answers an SMC that leaves the hypervisor."""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.arch.smccc import SMCCC_RET_NOT_SUPPORTED
from pkvm_emu.hyp.el3_psci import El3Psci
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.state import State, StateList

_MASK64 = (1 << 64) - 1

SmcHandler = Callable[[tuple[int, ...]], tuple[int, ...] | None]


class El3Firmware(State):
    """The ``bare`` firmware: PSCI 1.1, and NOT_SUPPORTED for everything else.

    Handlers registered with :meth:`serve` are asked first, in order; one that returns None passes the call on.

    Args:
        machine: whose CPUs it switches on and off.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.journal, "el3")
        self._psci = El3Psci(machine)
        self._args = machine.engine.batch(*[f"x{n}" for n in range(18)])
        self._handlers: list[SmcHandler] = []
        #: Function ids that nobody answered, in the order they first came.
        self.unanswered: StateList[int] = StateList(machine.journal, "el3.unanswered")
        machine.core.on_smc = self._smc

    @property
    def psci(self) -> El3Psci:
        """Its PSCI implementation."""
        return self._psci

    @property
    def handlers(self) -> tuple[SmcHandler, ...]:
        """Who is asked first, in order. Handlers are no part of snapshots."""
        return tuple(self._handlers)

    @handlers.setter
    def handlers(self, handlers: tuple[SmcHandler, ...]) -> None:
        self._handlers = list(handlers)

    def serve(self, handler: SmcHandler) -> None:
        """Answer SMCs with ``handler(x0..x17) -> x0.. or None``."""
        self._handlers.append(handler)

    def _smc(self) -> None:
        values = self._args.read()
        answer = self.answer(tuple(values))
        for index, value in enumerate(answer):
            values[index] = value & _MASK64
        self._args.write()

    def answer(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """The registers after an SMC with these."""
        for handler in self._handlers:
            answer = handler(registers)
            if answer is not None:
                return answer
        function = registers[0] & 0xFFFF_FFFF
        result = self._psci.answer(function, registers)
        if result is None:
            if function not in self.unanswered:
                self.unanswered.append(function)
            result = SMCCC_RET_NOT_SUPPORTED
        return (result,)
