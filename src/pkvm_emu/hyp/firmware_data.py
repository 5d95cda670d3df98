"""The EL2 firmware in the hypervisor's memory: its labels, and the words that it and Python share."""

from __future__ import annotations

from pkvm_emu.firmware.image import FirmwareImage
from pkvm_emu.hyp.hyp_stage1 import HypStage1
from pkvm_emu.machine.machine import Machine


class FirmwareData:
    """What a hypervisor knows of its firmware (a base of :class:`~pkvm_emu.hyp.hypervisor.Hypervisor`)."""

    _machine: Machine
    _stage1: HypStage1
    _firmware: FirmwareImage
    _image_pa: int

    def entry(self, label: str) -> int:
        """Hyp VA of a label of the EL2 firmware."""
        return self._stage1.va_of(self._image_pa + self._firmware.symbols[label])

    def data_pa(self, label: str) -> int:
        """PA of a label of the EL2 firmware."""
        return self._image_pa + self._firmware.symbols[label]

    def read_word(self, label: str) -> int:
        """A 64-bit word of the firmware's data."""
        return self._machine.ram.read_u64(self.data_pa(label))

    def write_word(self, label: str, value: int) -> None:
        """Set a 64-bit word of the firmware's data."""
        self._machine.ram.write_u64(self.data_pa(label), value)

    def write_word32(self, label: str, value: int) -> None:
        """Set a 32-bit word of the firmware's data."""
        self._machine.ram.write_u32(self.data_pa(label), value)

    def append(self, table: str, count: str, capacity: int, value: int) -> int | None:
        """Append to a handler table of the firmware; the index, or None when it is full."""
        index = self.read_word(count)
        if index >= capacity:
            return None
        self._machine.ram.write_u64(self.data_pa(table) + 8 * index, value)
        self.write_word(count, index + 1)
        return index
