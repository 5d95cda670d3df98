"""A register file that remembers: reads give what was written last (0 before), and every access is recorded.

It stands behind the MMIO windows of devices that have no model of their own, so that a driver's accesses succeed and can
be looked at afterwards:

>>> for access in system.mmio.log:
...     print(access)
write 4 bytes at 0x10000008: 0x1 (EL1 probe+0x40/0x80 [foo])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.machine.core import Service, Stuck
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

PAGE_SIZE = 4096
#: A window larger than this is no register file but a memory or a bus; it is left without a device.
WINDOW_LIMIT = 1 << 28
_PHYSICAL_LIMIT = 1 << 40
#: Accesses to the same few registers, with no exception and no call in between, after which a driver waits for ever: while
#: no time passes, and where it reads the counter between them.
POLL_LIMIT, TIMED_POLL_LIMIT = 100_000, 1_000_000
_POLLED_REGISTERS = 8


class Access(NamedTuple):
    """One access, or several equal ones in a row.

    Attributes:
        is_write: direction.
        address: physical.
        size: bytes: 1, 2, 4 (a 64-bit access arrives as two).
        value: what was read or written.
        el: exception level that made it.
        pc: the CPU's program counter; the engine keeps it at the start of a block, so it is near the access and not on it.
        times: how many in a row.
    """

    is_write: bool
    address: int
    size: int
    value: int
    el: int
    pc: int
    times: int = 1


class RegisterFile(State):
    """Registers without a meaning, at any number of physical windows.

    Args:
        machine: whose bus they are on.

    Attributes:
        words: values by 4-byte-aligned physical address.
        log: the accesses in order.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.journal, "devices.registers")
        self._machine = machine
        self._mapped: list[tuple[int, int]] = []
        self._poll = _Poll()
        self.words: StateDict[int, int] = StateDict(machine.journal, "devices.registers.words")
        self.log: StateList[Access] = StateList(machine.journal, "devices.registers.log")

    def map(self, start: int, size: int) -> None:
        """Put registers at a physical range, as far as there is neither RAM nor a device yet."""
        if not 0 < size <= WINDOW_LIMIT or start + size > _PHYSICAL_LIMIT:
            return
        ram = self._machine.ram
        first, last = start & -PAGE_SIZE, -(-(start + size) // PAGE_SIZE) * PAGE_SIZE
        for low, high in _gaps(first, last, sorted([*self._machine.engine.mmio_windows, (ram.base, ram.end)])):
            self._machine.engine.map_mmio(
                low,
                high - low,
                lambda offset, width, base=low: self._read(base + offset, width),  # type: ignore[misc]  # mypy: lambda default
                lambda offset, width, value, base=low: self._write(base + offset, width, value),  # type: ignore[misc]  # mypy: lambda default
            )
            self._mapped.append((low, high))

    def covers(self, address: int) -> bool:
        """Whether a physical address is one of the registers."""
        return any(low <= address < high for low, high in self._mapped)

    def peek(self, address: int, size: int = 4) -> int:
        """The value of a register, without an entry in the log."""
        shift = 8 * (address & 3)
        value = self.words.get(address & ~3, 0) | self.words.get((address & ~3) + 4, 0) << 32
        return value >> shift & (1 << 8 * size) - 1

    def poke(self, address: int, value: int, size: int = 4) -> None:
        """Set a register from Python (a status bit that the hardware would set), without an entry in the log."""
        for at in range(address, address + size):
            shift = 8 * (at & 3)
            byte = value >> 8 * (at - address) & 0xFF
            self.words[at & ~3] = self.words.get(at & ~3, 0) & ~(0xFF << shift) | byte << shift

    def describe(self, access: Access) -> str:
        """An access as text, with the place in the code."""
        kind, times = ("write" if access.is_write else "read"), (f" {access.times} times" if access.times > 1 else "")
        where = self._machine.core.describe(access.pc, access.el)
        return f"{kind} {access.size} bytes at {access.address:#x}: {access.value:#x}{times} ({where})"

    def _read(self, address: int, size: int) -> int:
        value = self.peek(address, size)
        self._record(False, address, size, value)
        return value

    def _write(self, address: int, size: int, value: int) -> None:
        value &= (1 << 8 * size) - 1
        self.poke(address, value, size)
        self._record(True, address, size, value)

    def _record(self, is_write: bool, address: int, size: int, value: int) -> None:
        core = self._machine.core
        entry = Access(is_write, address, size, value, core.el, core.engine.read("pc"))
        last = self.log[-1] if self.log else None
        if last is not None and last._replace(times=1) == entry:
            self.log[-1] = last._replace(times=last.times + 1)
        else:
            self.log.append(entry)
        if self._poll.is_endless(address, core.events, core.ticks):
            self._give_up(entry)
        # The engine does not bear being halted in the middle of an access, so the watchdog is told of each.
        core.events += 1
        self._poll.events = core.events

    def _give_up(self, entry: Access) -> None:
        core = self._machine.core
        before = core.on_exception

        def stuck(*_: object) -> None:
            core.on_exception = before
            self._poll = _Poll()
            raise Stuck(
                f"{core.describe(entry.pc, entry.el)} waits for ever on the register at {entry.address:#x}, which reads "
                f"{entry.value:#x}; set it with system.mmio.poke() before, or give the device a model"
            )

        # Whichever comes first: the engine stops, or an exception is taken.
        core.on_exception = stuck
        core.leave_hook(Service("register poll", core.el, 0, stuck, in_hook=False))


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


def _gaps(first: int, last: int, taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    gaps = []
    for low, high in taken:
        if high <= first or low >= last:
            continue
        if low > first:
            gaps.append((first, low))
        first = max(first, high)
    if first < last:
        gaps.append((first, last))
    return gaps
