"""PSCI 1.1 as the firmware at EL3 implements it: it switches CPUs on and off, and the machine.

Who calls it is the hypervisor, which relays the host's calls (:mod:`pkvm_emu.hyp.psci_relay`). Source: Arm DEN 0022.
"""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.arch.psci import PSCI_VERSION_1_1, AffinityState, PsciFunction, PsciReturn, is_psci
from pkvm_emu.arch.smccc import SMCCC_VERSION
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.power import Entry, PowerState
from pkvm_emu.machine.state import State

_AFFINITY = 0xFF_00FF_FFFF
_SMC64 = 1 << 30
_FUNCTION_MASK = 0x1F
#: CPU_SUSPEND, power_state in the original format: the CPU loses its registers.
_POWER_DOWN = 1 << 16
_TRUSTED_OS_NOT_PRESENT = 2
_AFFINITY_OF = {
    PowerState.ON: AffinityState.ON,
    PowerState.SUSPENDED: AffinityState.ON,
    PowerState.OFF: AffinityState.OFF,
    PowerState.PENDING: AffinityState.ON_PENDING,
}

PsciHandler = Callable[[tuple[int, ...]], int]


class El3Psci(State):
    """PSCI of one machine.

    Args:
        machine: the machine.

    Attributes:
        mem_protect: MEM_PROTECT is on: memory is wiped in a reset.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.journal, "el3.psci")
        self._machine = machine
        self._power = machine.power
        self.mem_protect = 0
        #: FEATURES says that SMCCC_VERSION may be asked (firmware since SMCCC 1.1).
        self.knows_smccc = False
        self._functions: dict[PsciFunction, PsciHandler] = {
            PsciFunction.VERSION: lambda x: PSCI_VERSION_1_1,
            PsciFunction.CPU_SUSPEND: self._cpu_suspend,
            PsciFunction.CPU_OFF: self._cpu_off,
            PsciFunction.CPU_ON: self._cpu_on,
            PsciFunction.AFFINITY_INFO: self._affinity_info,
            PsciFunction.MIGRATE_INFO_TYPE: lambda x: _TRUSTED_OS_NOT_PRESENT,
            PsciFunction.SYSTEM_OFF: lambda x: self._end("SYSTEM_OFF", "off"),
            PsciFunction.SYSTEM_RESET: lambda x: self._end("SYSTEM_RESET", "reset"),
            PsciFunction.FEATURES: self._features,
            PsciFunction.SYSTEM_SUSPEND: self._system_suspend,
            PsciFunction.SYSTEM_RESET2: self._system_reset2,
            PsciFunction.MEM_PROTECT: self._mem_protect,
        }

    def answer(self, function: int, registers: tuple[int, ...]) -> int | None:
        """x0 after a call, or None for an id that this firmware does not have.

        Args:
            function: the low 32 bits of x0.
            registers: x0, x1, ... of the call.

        Raises:
            PoweredOff: the call ends the machine.
        """
        number = function & _FUNCTION_MASK
        if not is_psci(function) or number > max(PsciFunction):
            return None
        handler = self._functions.get(PsciFunction(number))
        return None if handler is None else handler(registers)

    def _features(self, x: tuple[int, ...]) -> int:
        wanted = x[1] & 0xFFFF_FFFF
        if wanted == SMCCC_VERSION and self.knows_smccc:
            return PsciReturn.SUCCESS
        number = wanted & _FUNCTION_MASK
        known = is_psci(wanted) and number <= max(PsciFunction) and PsciFunction(number) in self._functions
        return PsciReturn.SUCCESS if known else PsciReturn.NOT_SUPPORTED

    # CPUs

    def _find(self, mpidr: int) -> int | None:
        return next((cpu.index for cpu in self._machine.cpus if cpu.mpidr & _AFFINITY == mpidr), None)

    def _cpu_on(self, x: tuple[int, ...]) -> int:
        target = self._find(x[1])
        if target is None:
            return PsciReturn.INVALID_PARAMS
        state = self._power.states[target]
        if state is PowerState.PENDING:
            return PsciReturn.ON_PENDING
        if state is not PowerState.OFF:
            return PsciReturn.ALREADY_ON
        if x[2] not in self._machine.ram:
            return PsciReturn.INVALID_ADDRESS
        self._power.turn_on(target, Entry(x[2], x[3]))
        return PsciReturn.SUCCESS

    def _cpu_off(self, _x: tuple[int, ...]) -> int:
        self._power.turn_off(self._machine.current.index)
        self._machine.core.park()
        return PsciReturn.SUCCESS

    def _cpu_suspend(self, x: tuple[int, ...]) -> int:
        if not x[1] & _POWER_DOWN:
            # Standby: an interrupt is pending at once, and the CPU goes on behind the call.
            return PsciReturn.SUCCESS
        return self._sleep(Entry(x[2], x[3]))

    def _sleep(self, entry: Entry) -> int:
        if entry.pc not in self._machine.ram:
            return PsciReturn.INVALID_ADDRESS
        self._power.suspend(self._machine.current.index, entry)
        self._machine.core.park()
        return PsciReturn.SUCCESS

    def _affinity_info(self, x: tuple[int, ...]) -> int:
        target = self._find(x[1])
        if target is None or x[2]:
            return PsciReturn.INVALID_PARAMS
        return _AFFINITY_OF[self._power.states[target]]

    # The machine

    def _system_suspend(self, x: tuple[int, ...]) -> int:
        here = self._machine.current.index
        if any(state is not PowerState.OFF for index, state in self._power.states.items() if index != here):
            return PsciReturn.DENIED
        return self._sleep(Entry(x[1], x[2]))

    def _system_reset2(self, x: tuple[int, ...]) -> int:
        if x[1] & 0xFFFF_FFFF and not x[1] >> 31 & 1:
            return PsciReturn.INVALID_PARAMS
        return self._end("SYSTEM_RESET2", "reset")

    def _end(self, name: str, kind: str) -> int:
        raise self._power.end(f"PSCI {name} on CPU {self._machine.current.index}", kind)

    def _mem_protect(self, x: tuple[int, ...]) -> int:
        before, self.mem_protect = self.mem_protect, int(x[1] != 0)
        return before
