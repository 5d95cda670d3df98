"""``double-fetch``: bytes that the host can change are read once in a call."""

from __future__ import annotations

from pkvm_emu.contracts.checker import Checker
from pkvm_emu.contracts.entries import Entry
from pkvm_emu.contracts.monitor import Monitor
from pkvm_emu.hyp.op_calls import OpCall
from pkvm_emu.hyp.page_state import Component


class Fetches(Checker):
    """Reads of one call: forgotten when the next begins, so no part of snapshots."""

    contracts = ("double-fetch",)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        #: The instruction that read a byte, by PA.
        self._read: dict[int, int] = {}
        self._is_host: dict[int, bool] = {}

    def entered(self, entry: Entry) -> None:
        """A new call."""
        self._read.clear()
        self._is_host.clear()

    def op(self, call: OpCall, result: int) -> None:
        """Pages may have changed hands."""
        self._is_host.clear()

    def access(self, pc: int, is_write: bool, pa: int, size: int) -> None:
        """A read of a byte that was read before, with no store of EL2's own in between."""
        page = pa & ~0xFFF
        is_host = self._is_host.get(page)
        if is_host is None:
            is_host = self._is_host[page] = self.system.hyp.ownership.owner_of(page) is Component.HOST
        if not is_host:
            return
        again = 0
        for byte in range(pa, pa + size):
            if is_write:
                self._read.pop(byte, None)
            else:
                again = again or self._read.get(byte, 0)
                self._read[byte] = pc
        if again:
            first = self.system.symbols.describe(again, 2)
            self.found(
                "double-fetch",
                f"{size} bytes of the host's memory at {pa:#x} are read again; the first time at {first}",
                pc,
            )
