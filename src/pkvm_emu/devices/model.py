"""Models of devices, written in Python: registers with names and bit fields, hooks, time, interrupts, memory.

>>> class Control(Register):
...     enable = Field(0)
...     mode = Field(2, 1)
>>> @model(compatible="acme,timer")
... class Timer(Model):
...     control = Reg(0x00, Control)
...     status = Reg(0x04, access="ro")
...     channel = Reg(0x10, count=4)
...
...     def write_control(self, value: Control) -> None:
...         self.control = value
...         if value.enable:
...             self.status = 1
...             self.irq(0)

A register without hooks holds what is written. An offset that no register is declared at does so too, so a model says only what
matters. All public attributes come back with a snapshot.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pkvm_emu.arch.bitfield import Field, Register
from pkvm_emu.devices.reg import Reg
from pkvm_emu.devices.registers import RegisterFile
from pkvm_emu.errors import PkvmEmuError, UsageError
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.devices.access_log import Access
    from pkvm_emu.devices.bus import MmioBus

M = TypeVar("M", bound="type[Model]")
_HERE = Path(__file__).parent
_OWN_FILES = frozenset(str(_HERE / name) for name in ("model.py", "bus.py", "registers.py"))


class Model(State):
    """Base of all models. A subclass declares registers and writes hooks; it has no ``__init__`` but :meth:`reset`.

    Hooks, all optional:

    * ``read_NAME(self)`` gives what the guest reads of register NAME; ``read_NAME(self, index)`` for an array.
    * ``write_NAME(self, value)``, ``write_NAME(self, index, value)``: the guest wrote. Nothing is held unless the hook does it.
    * ``read(self, offset, size)`` and ``write(self, offset, size, value)`` take all accesses.

    Args:
        bus: the machine's devices.
        base: physical address of the window.
        size: bytes of the window.
        name: of the window.

    Attributes:
        base: physical address.
        size: bytes.
        name: the path of the device-tree node, or what ``--mmio`` said.
    """

    #: Strings of ``compatible`` that it is chosen by.
    COMPATIBLE: tuple[str, ...] = ()
    _registers: dict[int, tuple[Reg, int]]
    _by_name: dict[str, Reg]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._by_name = {
            name: value
            for owner in reversed(cls.__mro__)
            for name, value in vars(owner).items()
            if isinstance(value, Reg)
        }
        cls._registers = {
            reg.offset + index * reg.stride: (reg, index) for reg in cls._by_name.values() for index in range(reg.count)
        }

    def __init__(self, bus: MmioBus, base: int, size: int, name: str) -> None:
        machine = bus.machine
        super().__init__(machine.journal)
        self._bus = bus
        self._machine = machine
        self._held = RegisterFile(machine.journal)
        self._interrupts: tuple[tuple[str, int], ...] = ()
        self._upstream: tuple[Model, int] | None = None
        self.base = base
        self.size = size
        self.name = name
        self.held = self._held
        for reg, index in self._registers.values():
            if reg.reset:
                reg.put(self, index, reg.reset)
        try:
            self.reset()
        except Exception as error:
            raise _failure(self, error, "reset") from error

    def __setattr__(self, key: str, value: Any) -> None:
        if isinstance(getattr(type(self), key, None), Reg):
            object.__setattr__(self, key, value)
            return
        # What a model keeps comes back with a snapshot, so lists and dicts are journalled ones.
        if key[0] != "_" and isinstance(value, list):
            value = StateList(self._machine.journal, initial=value)
        elif key[0] != "_" and isinstance(value, dict):
            mapping: StateDict[Any, Any] = StateDict(self._machine.journal)
            mapping.update(value)
            value = mapping
        super().__setattr__(key, value)

    # What a model may use

    def reset(self) -> None:
        """Bring further attributes to their first values; registers have them already."""

    @property
    def ticks(self) -> int:
        """The machine's counter (CNTVCT_EL0): it counts work, :attr:`ticks_per_second` in a second."""
        return self._machine.core.ticks

    @property
    def ticks_per_second(self) -> int:
        """CNTFRQ_EL0."""
        return self._machine.profile.counter_hz

    def irq(self, which: int | str = 0) -> None:
        """Raise an interrupt of its device-tree node, by index or name. Handlers run at EL1 when the host can take it.

        Raises:
            UsageError: its node has no such interrupt.
        """
        names = [name for name, _ in self._interrupts]
        index = names.index(which) if which in names else which
        if isinstance(index, str) or not 0 <= index < len(self._interrupts):
            known = ", ".join(name or str(place) for place, name in enumerate(names)) or "none"
            raise UsageError(f"{self.name} has no interrupt {which!r} in the device tree (there: {known})")
        self._bus.raise_interrupt(self._interrupts[index][1])

    def has_irq(self, name: str) -> bool:
        """Whether its node has an interrupt of that name."""
        return any(name == one for one, _ in self._interrupts)

    def spi(self, number: int) -> None:
        """Raise shared peripheral interrupt ``number`` of the GIC, also where the model has no node."""
        self._bus.raise_interrupt(number + 32)

    def dma_read(self, address: int, size: int, stream: int | None = None) -> bytes:
        """Read memory as a bus master.

        Args:
            address: what the device puts on the bus: an IOVA where an IOMMU is in between, else a physical address.
            size: bytes.
            stream: its id at the IOMMU; the one of ``iommus`` of its node if left out.

        Raises:
            DmaError: the IOMMU refuses it, or there is no RAM.
        """
        return b"".join(self.physical_read(pa, part) for pa, part in self._dma(address, size, stream, False))

    def dma_write(self, address: int, data: bytes, stream: int | None = None) -> None:
        """Write memory as a bus master; arguments and errors as for :meth:`dma_read`."""
        for pa, part in self._dma(address, len(data), stream, True):
            self.physical_write(pa, data[:part])
            data = data[part:]

    def physical_read(self, address: int, size: int) -> bytes:
        """Read RAM by physical address, past any IOMMU.

        Raises:
            DmaError: there is no RAM.
        """
        self._check(address, size)
        return self._machine.ram.read(address, size)

    def physical_write(self, address: int, data: bytes) -> None:
        """Write RAM by physical address; errors as for :meth:`physical_read`."""
        self._check(address, len(data))
        self._machine.ram.write(address, data)

    def _check(self, address: int, size: int) -> None:
        ram = self._machine.ram
        if not ram.base <= address <= address + size <= ram.end:
            raise DmaError(f"{self.name}: memory access of {size} bytes at {address:#x}, where there is no RAM")

    def translate(self, stream: int, address: int, is_write: bool) -> int:
        """For models of IOMMUs: the physical address behind an address that device ``stream`` uses.

        Raises:
            DmaError: it may not.
        """
        raise DmaError(f"{self.name} is no IOMMU")

    def _dma(self, address: int, size: int, stream: int | None, is_write: bool) -> list[tuple[int, int]]:
        parts = []
        while size:
            part = min(size, 4096 - (address & 4095))
            pa = address
            if self._upstream is not None:
                iommu, own = self._upstream
                pa = iommu.translate(own if stream is None else stream, address, is_write)
            self._check(pa, part)
            parts.append((pa, part))
            address, size = address + part, size - part
        return parts

    # Registers

    def peek(self, offset: int, size: int = 4) -> int:
        """What is held at an offset; no hook is called."""
        return self._held.peek(offset, size)

    def poke(self, offset: int, value: int, size: int = 4) -> None:
        """Hold a value at an offset; no hook is called."""
        self._held.poke(offset, value, size)

    def register_name(self, offset: int) -> str:
        """The name of the register at an offset: ``CONTROL``, ``CHANNEL[2]``, and ``+0x44`` for one that is not declared."""
        found = self._find(offset)
        if found is None:
            return f"+{offset:#x}"
        reg, index, rest = found
        name = reg.label if reg.count == 1 else f"{reg.label}[{index}]"
        return f"{name}+{rest}" if rest else name

    def fields(self, offset: int, size: int, value: int) -> str:
        """A value of the register at an offset by the names of its bit fields; empty where they are not declared."""
        found = self._registers.get(offset)
        if found is None or found[0].kind is None or found[0].size != size:
            return ""
        return found[0].kind(value).describe()

    def read(self, offset: int, size: int) -> int:
        """The guest reads ``size`` bytes at an offset."""
        found = self._find(offset)
        if found is None or (size > found[0].size and not found[2]):
            # A wide access of narrow registers, or none at all.
            return self._read_parts(offset, size) if size > 4 else self.peek(offset, size)
        reg, index, rest = found
        if reg.access == "wo":
            return 0
        hook = getattr(self, f"read_{reg.name}", None)
        if hook is None:
            value = reg.value(self, index)
        else:
            value = int(hook() if reg.count == 1 else hook(index)) & (1 << 8 * reg.size) - 1
        return value >> 8 * rest & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes ``size`` bytes at an offset."""
        found = self._find(offset)
        if found is None or (size > found[0].size and not found[2]):
            if size > 4:
                self.write(offset, 4, value & 0xFFFF_FFFF)
                self.write(offset + 4, size - 4, value >> 32)
            else:
                self.poke(offset, value, size)
            return
        reg, index, rest = found
        if reg.access == "ro":
            return
        if size != reg.size:
            # A part of a register: the rest of it is written with what it holds.
            mask = (1 << 8 * size) - 1 << 8 * rest
            value = int(reg.value(self, index)) & ~mask | value << 8 * rest
        hook = getattr(self, f"write_{reg.name}", None)
        if hook is None:
            reg.put(self, index, value)
            return
        given = value if reg.kind is None else reg.kind(value)
        hook(given) if reg.count == 1 else hook(index, given)

    def access(self, entry: Access, offset: int) -> int:
        """An access of the guest: the value that is read.

        Raises:
            UsageError: the model's Python failed; one line with its file and line.
        """
        try:
            if entry.is_write:
                self.write(offset, entry.size, entry.value)
                return 0
            return self.read(offset, entry.size)
        except PkvmEmuError:
            raise
        except Exception as error:
            raise _failure(self, error, self._bus.describe(entry)) from error

    def connect(self, interrupts: tuple[tuple[str, int], ...], upstream: tuple[Model, int] | None) -> None:
        """Tell it its interrupts (name, number at the controller) and the IOMMU in front of it, with its stream id there."""
        self._interrupts = interrupts or self._interrupts
        self._upstream = upstream or self._upstream

    def _read_parts(self, offset: int, size: int) -> int:
        return self.read(offset, 4) | self.read(offset + 4, size - 4) << 32

    def _find(self, offset: int) -> tuple[Reg, int, int] | None:
        for start in range(offset, max(offset - 8, -1), -1):
            found = self._registers.get(start)
            if found is not None and offset < start + found[0].size:
                return (*found, offset - start)
        return None


class DmaError(UsageError):
    """A device's own access to memory failed: its IOMMU refuses it, or there is no RAM."""


def model(*, compatible: str | tuple[str, ...]) -> Callable[[M], M]:
    """Let a model stand behind the first window of each device-tree node with one of these ``compatible`` strings."""

    def mark(cls: M) -> M:
        cls.COMPATIBLE = (compatible,) if isinstance(compatible, str) else tuple(compatible)
        return cls

    return mark


def _failure(owner: Model, error: BaseException, doing: str) -> UsageError:
    """An error of a model's Python as one line: where in its file, what, and during which access."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename not in _OWN_FILES]
    frames = frames or list(traceback.extract_tb(error.__traceback__))
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else type(owner).__name__
    text = str(error).splitlines()
    return UsageError(
        f"{where}: {type(error).__name__}: {text[0] if text else ''} in model {type(owner).__name__} ({doing})"
    )


__all__ = ["DmaError", "Field", "Model", "Reg", "Register", "model"]
