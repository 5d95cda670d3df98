"""The devices that every machine has: a PL011 UART at 0x0900_0000 and a PL031 clock at 0x0901_0000."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.devices.pl011 import Pl011
from pkvm_emu.devices.pl031 import Pl031

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

UART_BASE, RTC_BASE = 0x0900_0000, 0x0901_0000


class StandardDevices:
    """The devices of a machine; each is None where the machine has RAM at its address.

    Attributes:
        uart: the PL011.
        rtc: the PL031.
    """

    def __init__(self, machine: Machine) -> None:
        ram = machine.ram
        self.uart = None if UART_BASE in ram else Pl011(machine, UART_BASE)
        self.rtc = None if RTC_BASE in ram else Pl031(machine, RTC_BASE)
