"""A PL011 UART: what is written to its data register is kept, and its transmitter is always ready.

>>> system.devices.uart.output
'hello from EL2\\n'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.devices.identification import PrimeCellId
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

SIZE = 0x1000
DATA, FLAGS = 0x00, 0x18
_ICR = 0x44
#: UARTFR: transmitter empty, receiver empty.
_TRANSMITTER_EMPTY, _RECEIVER_EMPTY = 1 << 7, 1 << 4
#: UARTCR and UARTIFLS after reset.
_RESET = {0x30: 0x300, 0x34: 0x12}


class Pl011(State):
    """One UART.

    Args:
        machine: whose bus it is on.
        base: physical address.

    Attributes:
        base: physical address.
    """

    def __init__(self, machine: Machine, base: int) -> None:
        super().__init__(machine.journal, "devices.pl011")
        self.base = base
        self._id = PrimeCellId(0x011, 1)
        self._registers: StateDict[int, int] = StateDict(machine.journal, "devices.pl011.registers")
        self._sent: StateList[int] = StateList(machine.journal, "devices.pl011.sent")
        machine.engine.map_mmio(base, SIZE, self._read, self._write)

    @property
    def output(self) -> str:
        """Everything that was sent, bytes above 0x7f as Latin-1."""
        return bytes(self._sent).decode("latin-1")

    def _read(self, offset: int, _size: int) -> int:
        if offset == FLAGS:
            return _TRANSMITTER_EMPTY | _RECEIVER_EMPTY
        identification = self._id.read(offset)
        if identification is not None:
            return identification
        return 0 if offset == DATA else self._registers.get(offset, _RESET.get(offset, 0))

    def _write(self, offset: int, _size: int, value: int) -> None:
        if offset == DATA:
            self._sent.append(value & 0xFF)
        elif offset not in (FLAGS, _ICR) and self._id.read(offset) is None:
            self._registers[offset] = value & 0xFFFF
