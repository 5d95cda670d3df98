"""The log of accesses to devices, and drivers that wait for ever on one of their registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.machine.core import Stuck
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

#: Accesses to the same few registers, with no exception and no call in between, after which a driver waits for ever: while
#: no time passes, and where it reads the counter between them.
POLL_LIMIT, TIMED_POLL_LIMIT = 100_000, 1_000_000
_POLLED_REGISTERS = 8


class Access(NamedTuple):
    """One access, or several equal ones in a row.

    Attributes:
        is_write: direction.
        address: physical.
        size: bytes: 1, 2, 4 or 8.
        value: what was read or written.
        el: exception level that made it.
        pc: the instruction, where it is a module's or the kernel's; for the hypervisor's own code the start of its block.
        times: how many in a row.
        cpu: number of the CPU.
        window: the name of the window: the path of a device-tree node, or what ``--mmio`` said.
        register: the name of the register, or its offset in the window (``+0x40``).
    """

    is_write: bool
    address: int
    size: int
    value: int
    el: int
    pc: int
    times: int = 1
    cpu: int = 0
    window: str = ""
    register: str = ""


class AccessLog(State):
    """The accesses in order, equal ones in a row as one entry.

    Args:
        machine: whose CPUs make them.

    Attributes:
        entries: the accesses.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.journal, "devices.log")
        self._machine = machine
        self._poll = _Poll()
        self.entries: StateList[Access] = StateList(machine.journal)

    def record(self, entry: Access) -> None:
        """Add an access.

        Raises:
            Stuck: the driver polls for ever.
        """
        last = self.entries[-1] if self.entries else None
        if last is not None and last._replace(times=1) == entry:
            self.entries[-1] = last._replace(times=last.times + 1)
        else:
            self.entries.append(entry)
        core = self._machine.core
        if self._poll.is_endless(entry.address, core.events, core.ticks):
            self._poll = _Poll()
            register = f"the register at {entry.address:#x} ({entry.window} {entry.register})"
            raise Stuck(
                f"{core.describe(entry.pc, entry.el)} waits for ever on {register}, which reads "
                f"{entry.value:#x}; set it with system.mmio.poke() before, or give the device a model with --mmio"
            )
        # An access is progress for the watchdog.
        core.events += 1
        self._poll.events = core.events


class _Poll:
    """Tells a driver that polls a few registers for ever from one that gets on."""

    def __init__(self) -> None:
        self.events = -1
        self._ticks = -1
        self._addresses: set[int] = set()
        self._count = 0
        self._untimed = 0

    def is_endless(self, address: int, events: int, ticks: int) -> bool:
        """Count one access; whether that was one too many."""
        if events != self.events or address not in self._addresses:
            if events != self.events or len(self._addresses) >= _POLLED_REGISTERS:
                self._addresses.clear()
            self._addresses.add(address)
            self._count = self._untimed = 0
        self._count += 1
        self._untimed = self._untimed + 1 if ticks == self._ticks else 0
        self._ticks = ticks
        return self._untimed >= POLL_LIMIT or self._count >= TIMED_POLL_LIMIT
