"""Which CPUs run, and where those that do not will start; whether the machine is on at all.

EL3 firmware decides about it (PSCI); this is what the hardware below it remembers. Everything is journalled.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pkvm_emu.errors import ModuleError
from pkvm_emu.machine.state import Journal, State, StateDict


class PowerState(StrEnum):
    """State of one CPU."""

    ON = "on"
    OFF = "off"
    #: CPU_ON was called and the CPU has not executed its first instruction yet.
    PENDING = "on-pending"
    #: Waiting for a wake-up, with its registers lost.
    SUSPENDED = "suspended"


class Entry(NamedTuple):
    """Where a CPU starts at EL2, with the MMU off: physical address, and x0."""

    pc: int
    x0: int


class PoweredOff(ModuleError):
    """Guest code switched the machine off, or reset it.

    Attributes:
        kind: ``off`` or ``reset``.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Power(State):
    """Power states of the CPUs of one machine.

    Args:
        journal: owner of the state.
        cpus: number of CPUs; all of them are on.

    Attributes:
        states: by CPU number.
        entries: where a CPU that is pending or suspended starts.
        ended: why the machine does not run any more; empty while it does.
    """

    def __init__(self, journal: Journal, cpus: int) -> None:
        super().__init__(journal, "power")
        self.states: StateDict[int, PowerState] = StateDict(journal, "power.states")
        for index in range(cpus):
            self.states[index] = PowerState.ON
        self.entries: StateDict[int, Entry] = StateDict(journal, "power.entries")
        self.ended = ""

    def is_on(self, index: int) -> bool:
        """The CPU runs."""
        return self.states[index] is PowerState.ON

    @property
    def running(self) -> list[int]:
        """The CPUs that run, in order."""
        return [index for index, state in self.states.items() if state is PowerState.ON]

    def in_state(self, state: PowerState) -> list[int]:
        """The CPUs in a state, in order."""
        return [index for index, here in self.states.items() if here is state]

    def turn_on(self, index: int, entry: Entry) -> None:
        """Let a CPU that is off start at ``entry``; it is pending until the machine puts it on the engine."""
        self.entries[index] = entry
        self.states[index] = PowerState.PENDING

    def turn_off(self, index: int) -> None:
        """The CPU runs no more; its registers are lost."""
        self.states[index] = PowerState.OFF

    def suspend(self, index: int, entry: Entry) -> None:
        """The CPU sleeps without its registers until :meth:`Machine.start_cpu`."""
        self.entries[index] = entry
        self.states[index] = PowerState.SUSPENDED

    def started(self, index: int) -> Entry:
        """The CPU runs; where it begins."""
        entry = self.entries.pop(index)
        self.states[index] = PowerState.ON
        return entry

    def end(self, what: str, kind: str) -> PoweredOff:
        """The machine stops for good; the error to be raised, now and whenever it is to run again.

        Args:
            what: what did it (``PSCI SYSTEM_OFF on CPU 0``).
            kind: ``off`` or ``reset``.
        """
        self.ended = f"{kind}: {what}"
        return PoweredOff(f"{what} {'resets' if kind == 'reset' else 'switches off'} the machine", kind)

    def check(self, current: int) -> None:
        """Refuse to run a machine that is off, or a CPU that is.

        Raises:
            PoweredOff: the machine is off.
            ModuleError: the CPU is.
        """
        if self.ended:
            kind, _, what = self.ended.partition(": ")
            raise PoweredOff(f"the machine does not run since {what}: restore a snapshot or boot again", kind)
        if not self.is_on(current):
            raise ModuleError(self.describe(current))

    def describe(self, index: int) -> str:
        """What a CPU that does not run waits for."""
        state = self.states[index]
        if state is PowerState.SUSPENDED:
            return f"CPU {index} is suspended and does not run until it is resumed"
        return f"CPU {index} is {state} and does not run until another CPU switches it on"
