"""``system.cpu(i)``, ``system.on_cpu(i)`` and ``system.run_on(...)``: several CPUs from Python.

>>> system.cpu(1).online = False
>>> system.cpu(1).online = True
>>> with system.on_cpu(1):
...     print(system.call("cpu_number").x1)
1
>>> results = system.run_on({0: ("add_one", 5), 1: ("add_one", 6)}, seed=1)
>>> results[0].x1, results[1].x1
(6, 7)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.machine.power import PowerState
from pkvm_emu.machine.scheduler import DEFAULT_TURN, Scheduler
from pkvm_emu.results import HvcResult

if TYPE_CHECKING:
    from pkvm_emu.system import System

#: A hypercall and its arguments: the name of a module's EL2 function, or a number, then x1, x2, ...
Call = Sequence[str | int]
_MOST_ARGUMENTS = 7


class SystemCpu:
    """One CPU of a system.

    Args:
        system: the system.
        index: its number.

    Raises:
        UsageError: there is no such CPU.
    """

    def __init__(self, system: System, index: int) -> None:
        cpus = len(system.machine.cpus)
        if not 0 <= index < cpus:
            raise UsageError(f"there is no CPU {index}: the machine has CPUs 0 to {cpus - 1}")
        self._system = system
        self.index = index

    @property
    def state(self) -> PowerState:
        """What EL3 says: on, off, on-pending or suspended."""
        return self._system.machine.power.states[self.index]

    @property
    def online(self) -> bool:
        """Whether the kernel uses it; assigning takes it down or brings it up, as ``/sys/devices/system/cpu/cpuN/online`` does.

        Raises:
            UsageError: it is the last one (-EBUSY), or PSCI refused.
        """
        return self._system.kernel.part(Smp).is_online(self.index)

    @online.setter
    def online(self, wanted: bool) -> None:
        smp = self._system.kernel.part(Smp)
        error = smp.cpu_up(self.index) if wanted else smp.cpu_down(self.index)
        if error:
            raise UsageError(f"CPU {self.index} cannot go {'online' if wanted else 'offline'}: {errno_name(error)}")

    def suspend(self, context_id: int = 0) -> None:
        """PSCI CPU_SUSPEND into a power-down state; the CPU sleeps until :meth:`resume`.

        Args:
            context_id: what the CPU has in x0 when it is back at EL1.

        Raises:
            UsageError: PSCI refused, or the CPU does not run.
        """
        answer = self._system.kernel.part(Smp).suspend(self.index, context_id=context_id)
        if answer is not None:
            raise UsageError(f"CPU {self.index} cannot be suspended: PSCI returned {answer}")

    def resume(self) -> None:
        """Wake the CPU; raises ``ModuleError`` where it does not sleep."""
        self._system.kernel.part(Smp).resume(self.index)

    def __repr__(self) -> str:
        return f"<CPU {self.index}: {self.state}>"


def run_on(
    system: System, calls: Mapping[int, Call], seed: int = 0, longest_turn: int = DEFAULT_TURN
) -> dict[int, HvcResult]:
    """Make a hypercall on each of several CPUs at once, in turns; arguments as for ``System.run_on``."""
    entry = system.kernel.entry("host_hvc")
    prepared: dict[int, tuple[int, list[int]]] = {}
    for index, call in calls.items():
        if isinstance(call, (str, int)) or not call:
            raise UsageError(f"CPU {index}: give the hypercall and its arguments as a tuple, ('name', 1, 2)")
        function, *arguments = call
        if len(arguments) > _MOST_ARGUMENTS or not all(isinstance(value, int) for value in arguments):
            raise UsageError(f"CPU {index}: a hypercall takes up to {_MOST_ARGUMENTS} integers")
        registers = [system.function_id(function), *[int(value) for value in arguments]]
        prepared[index] = (entry, registers + [0] * (_MOST_ARGUMENTS + 1 - len(registers)))
    for index in prepared:
        with system.machine.on_cpu(index):
            system.kernel.use_own_stack()
    results = Scheduler(system.machine, seed, longest_turn).run(prepared)
    return {index: HvcResult(*results[index][:4]) for index in prepared if results[index]}
