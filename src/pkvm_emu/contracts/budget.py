"""``instruction-budget``: how long a call keeps the CPU at EL2."""

from __future__ import annotations

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor


class Budget(Checker):
    """Counts the instructions since EL2 was entered."""

    contracts = ("instruction-budget",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        self._limit = monitor.selection.budget
        self._executed = 0

    def entered(self, entry: Entry) -> None:
        """A new call."""
        self._executed = 0

    def block(self, pc: int, instructions: int) -> None:
        """Counted at the start of each block."""
        before = self._executed
        self._executed = before + instructions
        entry = self._monitor.entry
        if before <= self._limit < self._executed and entry is not None:
            self.found("instruction-budget", f"{entry.name} executes more than {self._limit} instructions", pc)
