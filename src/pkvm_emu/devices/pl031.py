"""A PL031 real-time clock: counts seconds of the machine's own time from what was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.devices.identification import PrimeCellId
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

SIZE = 0x1000
_DATA, _MATCH, _LOAD, _CONTROL, _MASK, _RAW, _MASKED, _CLEAR = range(0, 0x20, 4)
_U32 = (1 << 32) - 1


class Pl031(State):
    """One clock; it starts at 0 with the machine, so that runs are alike. It has no interrupt line.

    Args:
        machine: whose bus and whose counter.
        base: physical address.

    Attributes:
        base: physical address.
    """

    def __init__(self, machine: Machine, base: int) -> None:
        super().__init__(machine.journal, "devices.pl031")
        self._machine = machine
        self._id = PrimeCellId(0x031, 0)
        self.base = base
        self.offset = 0
        self.loaded = 0
        self.match = 0
        self.mask = 0
        machine.engine.map_mmio(base, SIZE, self._read, self._write)

    def _seconds(self) -> int:
        return self._machine.core.ticks // self._machine.profile.counter_hz

    def _read(self, offset: int, _size: int) -> int:
        identification = self._id.read(offset)
        if identification is not None:
            return identification
        now = self._seconds() + self.offset & _U32
        raised = int(now == self.match and self.match != 0)
        values = {
            _DATA: now,
            _MATCH: self.match,
            _LOAD: self.loaded,
            _CONTROL: 1,
            _MASK: self.mask,
            _RAW: raised,
            _MASKED: raised & self.mask,
        }
        return values.get(offset, 0)

    def _write(self, offset: int, _size: int, value: int) -> None:
        if offset == _LOAD:
            self.loaded = value
            self.offset = value - self._seconds()
        elif offset == _MATCH:
            self.match = value
        elif offset == _MASK:
            self.mask = value & 1
