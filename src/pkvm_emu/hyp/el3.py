"""EL3 firmware: what answers an SMC that leaves the hypervisor, and PSCI as the hypervisor relays it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pkvm_emu.arch.smccc import SMCCC_RET_NOT_SUPPORTED
from pkvm_emu.hyp.cpu import HostContext
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_PSCI_VERSION, _PSCI_FEATURES, _PSCI_AFFINITY_INFO = 0x8400_0000, 0x8400_000A, 0x8400_0004
_PSCI_MIGRATE_INFO_TYPE = 0x8400_0006
_PSCI_1_1 = 0x1_0001
_TRUSTED_OS_NOT_PRESENT = 2
_SMC64 = 1 << 30

SmcHandler = Callable[[tuple[int, ...]], tuple[int, ...] | None]


class El3Firmware(State):
    """The ``bare`` firmware: PSCI 1.1, and NOT_SUPPORTED for everything else.

    Handlers registered with :meth:`serve` are asked first, in order; one that returns None passes the call on.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "el3")
        self._hyp = hyp
        self._args = hyp.machine.engine.batch(*[f"x{n}" for n in range(18)])
        self._handlers: list[SmcHandler] = []
        #: Function ids that nobody answered, in the order they first came.
        self.unanswered: StateList[int] = StateList(hyp.machine.journal, "el3.unanswered")
        hyp.machine.core.on_smc = self._smc

    def serve(self, handler: SmcHandler) -> None:
        """Answer SMCs with ``handler(x0..x17) -> x0.. or None``."""
        self._handlers.append(handler)

    def _smc(self) -> None:
        values = self._args.read()
        answer = self.answer(tuple(values))
        for index, value in enumerate(answer):
            values[index] = value & (1 << 64) - 1
        self._args.write()

    def answer(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """The registers after an SMC with these."""
        for handler in self._handlers:
            answer = handler(registers)
            if answer is not None:
                return answer
        function = registers[0] & 0xFFFF_FFFF
        result = self._psci(function, registers)
        if result is None:
            if function not in self.unanswered:
                self.unanswered.append(function)
            result = SMCCC_RET_NOT_SUPPORTED
        return (result,)

    def relay_psci(self, function: int, regs: HostContext) -> None:
        """PSCI as the hypervisor relays it: x1..x3 come back as 0."""
        result = self._psci(function, tuple(regs[index] for index in range(4)))
        regs[0] = SMCCC_RET_NOT_SUPPORTED if result is None else result
        regs[1] = regs[2] = regs[3] = 0

    def _psci(self, function: int, registers: tuple[int, ...]) -> int | None:
        cpus = self._hyp.machine.cpus
        if function == _PSCI_VERSION:
            return _PSCI_1_1
        if function == _PSCI_FEATURES:
            known = {_PSCI_VERSION, _PSCI_FEATURES, _PSCI_AFFINITY_INFO, _PSCI_MIGRATE_INFO_TYPE}
            return 0 if registers[1] & ~_SMC64 & 0xFFFF_FFFF in known else SMCCC_RET_NOT_SUPPORTED
        if function & ~_SMC64 == _PSCI_AFFINITY_INFO:
            wanted = registers[1] & 0xFF_00FF_FFFF
            return 0 if any(cpu.mpidr & 0xFF_FFFF == wanted for cpu in cpus) else -2
        if function == _PSCI_MIGRATE_INFO_TYPE:
            return _TRUSTED_OS_NOT_PRESENT
        return None
