"""What a check of a contract hears, and how it says what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.contracts.entries import Entry
    from pkvm_emu.contracts.monitor import Monitor
    from pkvm_emu.hyp.op_calls import OpCall
    from pkvm_emu.system import System

CHECKERS: list[type[Checker]] = []


class Checker(State):
    """Watches for breaches of some contracts. What it remembers is journalled: it goes back with snapshots.

    Subclasses register themselves and override what they want to hear of.
    """

    #: The contracts it watches; it is not made where all of them are off.
    contracts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        CHECKERS.append(cls)

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor.system.machine.journal)
        self._monitor = monitor

    @property
    def system(self) -> System:
        """What is watched."""
        return self._monitor.system

    def found(self, contract: str, message: str, pc: int) -> None:
        """A contract is broken."""
        self._monitor.add(contract, message, pc)

    def op(self, call: OpCall, result: int) -> None:
        """An op was called; 0 is the result of those that have none."""

    def entered(self, entry: Entry) -> None:
        """EL2 was entered from the host."""

    def left(self, entry: Entry, registers: tuple[int, ...]) -> None:
        """EL2 is about to return to the host, with x0 to x17."""

    def deprivileged(self) -> None:
        """The host is about to be deprivileged."""

    def block(self, pc: int, instructions: int) -> None:
        """A block of a module's code begins to run at EL2 (contracts about memory only)."""

    def access(self, pc: int, is_write: bool, pa: int, size: int) -> None:
        """An instruction of a module is about to access memory (contracts about memory only)."""
