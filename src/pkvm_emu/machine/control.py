"""What a debugger is for the run loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Control(Protocol):
    """A debugger in the run loop. Its methods are called while the engine does not run, and may take as long as they like."""

    @property
    def has_stop(self) -> bool:
        """The engine was stopped for the debugger."""

    def start(self, pc: int) -> str | None:
        """Run as ``Watchdog.guarded`` does: until an event; the reason where the guest makes no progress."""

    def advance(self, pc: int, count: int) -> None:
        """Execute ``count`` instructions of a turn, fewer where an event comes before."""

    def fetch_failed(self) -> bool:
        """PC holds an address that cannot be executed; True: the debugger stops there, and the exception is not taken.

        Called while the engine runs.
        """

    def failed(self, error: BaseException) -> bool:
        """A run ends with an error; the registers are those of the place where it came up.

        True: it does not end. The machine was put into a state that it had earlier in the same run, and goes on from there.
        """

    def enter_call(self, caller: Sequence[int]) -> None:
        """Python calls guest code; x0..x30, SP, NZCV and PC of the interrupted guest are put back afterwards."""

    def leave_call(self) -> None:
        """The call has ended, whichever way."""
