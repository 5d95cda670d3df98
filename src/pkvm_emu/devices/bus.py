"""What is behind the physical addresses outside RAM: windows with names, a model or plain registers in each, and the log.

>>> for access in system.mmio.log:
...     print(system.mmio.describe(access))
EL1 CPU 0 writes 4 bytes at 0x10000008 (/timer@10000000 +0x8): 0x1 (probe+0x40/0x80 [timer])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.arch.loadstore import access_size
from pkvm_emu.devices.access_log import Access, AccessLog
from pkvm_emu.devices.registers import RegisterFile
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.engine import BusError
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.devices.model import Model
    from pkvm_emu.machine.machine import Machine

PAGE_SIZE = 4096
#: A window larger than this is no register file but a memory or a bus; it is left without a device.
WINDOW_LIMIT = 1 << 28
_PHYSICAL_LIMIT = 1 << 40


class Window(NamedTuple):
    """A physical range with a name: first address, the one after the last, and the model behind it (None: plain registers)."""

    start: int
    end: int
    name: str
    model: Model | None


class _Half(NamedTuple):
    """The first half of a 64-bit access: what the second one has to be, and what it reads, or what the first one wrote."""

    is_write: bool
    address: int
    pc: int
    value: int


class MmioBus(State):
    """The devices of a machine (``system.mmio``).

    Args:
        machine: whose physical addresses.

    Attributes:
        windows: the named ranges by their first address; where they overlap the smallest holds.
        pending: interrupts that models raised and that have not been delivered (numbers at the controller), in order.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.journal, "devices.mmio")
        self._machine = machine
        self._registers = RegisterFile(machine.journal, "devices.registers")
        self._log = AccessLog(machine)
        self._half: _Half | None = None
        self._mapped: list[tuple[int, int]] = []
        self._found: dict[int, Window] = {}
        self._found_at = (0, 0)
        self.windows: StateDict[tuple[int, int], Window] = StateDict(machine.journal)
        self.pending: StateList[int] = StateList(machine.journal)
        machine.core.describe_hole = self._describe_hole
        #: Called when an interrupt was raised; the kernel replaces it.
        self._on_interrupt: Callable[[], None] = lambda: None

    def set_interrupt_handler(self, handler: Callable[[], None]) -> None:
        """Call ``handler`` when a device raised an interrupt, in the middle of whatever made it do so."""
        self._on_interrupt = handler

    @property
    def machine(self) -> Machine:
        """Whose devices they are."""
        return self._machine

    def raise_interrupt(self, number: int) -> None:
        """Note that a device raises interrupt ``number`` (at the controller), and have it delivered as soon as it can be."""
        self.pending.append(number)
        self._on_interrupt()

    # Windows

    def map(self, start: int, size: int, name: str = "", model: Model | None = None) -> bool:
        """Put a device at a physical range, as far as there is neither RAM nor another device of the board.

        Returns:
            False where the range is no window of registers: empty, above 256 MiB, or beyond 1 TiB.
        """
        if not self.is_window(start, size):
            return False
        key = (start, start + size)
        if key not in self.windows or model is not None:
            self.windows[key] = Window(*key, name or f"{start:#x}", model)
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
        self._found.clear()
        return True

    @staticmethod
    def is_window(start: int, size: int) -> bool:
        """Whether a physical range can be a window of registers."""
        return 0 < size <= WINDOW_LIMIT and start >= 0 and start + size <= _PHYSICAL_LIMIT

    def is_own(self, window: tuple[int, int]) -> bool:
        """Whether a mapped window of the engine is one of these, and not that of a device that every board has."""
        return window in self._mapped

    def attach(self, model: Model) -> None:
        """Put a model at its range.

        Raises:
            UsageError: there is RAM, another model or a device of the board, or the range is too large.
        """
        start, end = model.base, model.base + model.size
        ram = self._machine.ram
        what = f"{model.name}: the window {start:#x}:{model.size:#x}"
        if start < ram.end and end > ram.base:
            raise UsageError(f"{what} overlaps RAM ({ram.base:#x} to {ram.end:#x})")
        for window in self.windows.values():
            if window.model is not None and start < window.end and end > window.start:
                raise UsageError(f"{what} overlaps {window.name} ({window.start:#x} to {window.end:#x})")
        for low, high in self._machine.engine.mmio_windows:
            if (low, high) not in self._mapped and start < high and end > low:
                raise UsageError(f"{what} overlaps a device that every board has ({low:#x} to {high:#x})")
        if not self.map(start, model.size, model.name, model):
            raise UsageError(f"{what} is no window of registers: it has 1 byte to 256 MiB, below 1 TiB")

    def window_at(self, address: int) -> Window | None:
        """The window of a physical address; the smallest where several overlap, those with a model first."""
        if address in self._machine.ram:
            return None
        stamp = (self._machine.core.restores, len(self.windows))
        if stamp != self._found_at:
            self._found.clear()
            self._found_at = stamp
        best = self._found.get(address)
        if best is None:
            for window in self.windows.values():
                if window.start <= address < window.end and (best is None or _rank(window) < _rank(best)):
                    best = window
            if best is not None:
                self._found[address] = best
        return best

    def covers(self, address: int) -> bool:
        """Whether a physical address lies in a window."""
        return self.window_at(address) is not None

    @property
    def models(self) -> list[Model]:
        """The models, in the order they came."""
        return [window.model for window in self.windows.values() if window.model is not None]

    def model(self, name: str | int) -> Model:
        """A model by the name of its window, a part of it that no other has, or an address in it.

        Raises:
            UsageError: there is none, or several.
        """
        if isinstance(name, int):
            window = self.window_at(name)
            found = [window.model] if window is not None and window.model is not None else []
        else:
            found = [one for one in self.models if one.name == name] or [one for one in self.models if name in one.name]
        if len(found) != 1:
            known = ", ".join(one.name for one in self.models) or "none"
            shown = hex(name) if isinstance(name, int) else repr(name)
            raise UsageError(f"{'no' if not found else 'more than one'} model at {shown} (models: {known})")
        return found[0]

    def _describe_hole(self, address: int) -> str:
        """What is near a physical address without a device, in words."""
        near = min(self.windows.values(), key=lambda one: (_distance(one, address), one.start), default=None)
        if near is None:
            return "the board has no device with registers"
        side = "above the end" if address >= near.end else "below the start"
        away = address - near.end if address >= near.end else near.start - address
        return f"the nearest is {near.name} ({near.start:#x} to {near.end:#x}), {away:#x} bytes {side} of it"

    # From Python

    @property
    def log(self) -> StateList[Access]:
        """The accesses of the guest in order."""
        return self._log.entries

    def peek(self, address: int, size: int = 4) -> int:
        """What the registers at a physical address hold, without an access: no hook of a model runs, nothing is logged."""
        window = self.window_at(address)
        if window is not None and window.model is not None:
            return window.model.peek(address - window.start, size)
        return self._registers.peek(address, size)

    def poke(self, address: int, value: int, size: int = 4) -> None:
        """Set a register from Python (a status bit that the hardware would set), without an access."""
        window = self.window_at(address)
        if window is not None and window.model is not None:
            window.model.poke(address - window.start, value, size)
        else:
            self._registers.poke(address, value, size)

    def describe(self, access: Access) -> str:
        """An access as text: level, CPU, what and where, and the place in the code."""
        times = f", {access.times} times" if access.times > 1 else ""
        fields = self.fields(access)
        where = self._machine.core.describe(access.pc, access.el)
        return (
            f"EL{access.el} CPU {access.cpu} {'writes' if access.is_write else 'reads'} {access.size} "
            f"byte{'s' if access.size > 1 else ''} at {access.address:#x} ({access.window} {access.register}): "
            f"{access.value:#x}{f' [{fields}]' if fields else ''}{times} ({where})"
        )

    def fields(self, access: Access) -> str:
        """The bit fields of an access to a register whose model declares them; empty for others."""
        window = self.window_at(access.address)
        if window is None or window.model is None:
            return ""
        return window.model.fields(access.address - window.start, access.size, access.value)

    # From the guest

    def _read(self, address: int, size: int) -> int:
        try:
            pc = self._machine.engine.read("pc")
            half, self._half = self._half, None
            if half is not None and not half.is_write and (half.address, half.pc) == (address, pc):
                return half.value
            self._finish(half)
            if size == 4 and self._is_wide(pc):
                value = self._access(False, address, 8, 0, pc)
                self._half = _Half(False, address + 4, pc, value >> 32)
                return value & 0xFFFF_FFFF
            return self._access(False, address, size, 0, pc)
        except BaseException as error:
            self._machine.core.abandon(error)
            return 0

    def _write(self, address: int, size: int, value: int) -> None:
        try:
            pc = self._machine.engine.read("pc")
            half, self._half = self._half, None
            if half is not None and half.is_write and (half.address, half.pc) == (address, pc):
                self._access(True, address - 4, 8, half.value | value << 32, pc)
                return
            self._finish(half)
            if size == 4 and self._is_wide(pc):
                self._half = _Half(True, address + 4, pc, value)
                return
            self._access(True, address, size, value & (1 << 8 * size) - 1, pc)
        except BaseException as error:
            self._machine.core.abandon(error)

    def _is_wide(self, pc: int) -> bool:
        engine = self._machine.engine
        if not engine.is_pc_exact(pc):
            return False
        word = self._machine.core.fetch(pc)
        return word is not None and access_size(word) in (8, 16)

    def _finish(self, half: _Half | None) -> None:
        # The other half went to another window or to RAM.
        if half is not None and half.is_write:
            self._access(True, half.address - 4, 4, half.value, half.pc)

    def _access(self, is_write: bool, address: int, size: int, value: int, pc: int) -> int:
        core = self._machine.core
        window = self.window_at(address)
        if window is None:
            # Either the rest of a page in which a window begins or ends, or a window of a snapshot that was left.
            if not any(_shares_page(one, address) for one in self.windows.values()):
                raise BusError(f"{core.describe(pc, core.el)} reaches {address:#x}: {self._describe_hole(address)}")
            name, register, model = "outside the windows", f"{address:#x}", None
        else:
            name, model = window.name, window.model
            offset = address - window.start
            register = f"+{offset:#x}" if model is None else model.register_name(offset)
        cpu = self._machine.current.index
        if model is not None and window is not None:
            offset = address - window.start
            entry = Access(is_write, address, size, value, core.el, pc, 1, cpu, name, register)
            if is_write:
                self._log.record(entry)
                model.access(entry, offset)
            else:
                value = model.access(entry, offset) & (1 << 8 * size) - 1
                self._log.record(entry._replace(value=value))
            return value
        if is_write:
            self._registers.poke(address, value, size)
        else:
            value = self._registers.peek(address, size)
        self._log.record(Access(is_write, address, size, value, core.el, pc, 1, cpu, name, register))
        return value


def _rank(window: Window) -> tuple[bool, int]:
    return window.model is None, window.end - window.start


def _distance(window: Window, address: int) -> int:
    return window.start - address if address < window.start else address - window.end + 1


def _shares_page(window: Window, address: int) -> bool:
    return window.start & -PAGE_SIZE <= address < -(-window.end // PAGE_SIZE) * PAGE_SIZE


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
