"""States of a stopped run that are gone back to: memory, registers and journal.

The Python functions on the stack stand at the same place for as long as the run loop that they wait for has not returned; so
everything else can be put back to an earlier point of that run. Where it has returned, the functions that were on the stack are
gone, and the way to the state is that of reverse execution: from the beginning of its act (the boot, a call), executing the
same instructions again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.debug.stops import Back, Request
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.control import RunControl
    from pkvm_emu.debug.history import History, Mark
    from pkvm_emu.machine.snapshot import Snapshot
    from pkvm_emu.system import System


@dataclass(frozen=True, slots=True)
class SavedState:
    """A state, the runs (outermost first) that were under way, and its index where a history is kept."""

    snapshot: Snapshot
    runs: tuple[int, ...]
    place: str
    mark: Mark | None = None
    index: int = 0


class SavedStates:
    """The kept states of one system, by name."""

    def __init__(self, system: System, control: RunControl) -> None:
        self._system = system
        self._control = control
        self._states: dict[str, SavedState] = {}
        #: The history, where one is kept: it has to know that the machine went elsewhere.
        self.history: History | None = None

    def save(self, name: str) -> None:
        """Keep the state of this stop."""
        machine = self._system.machine
        place = machine.core.describe(machine.engine.read("pc"), machine.core.el)
        snapshot = machine.snapshots.take(inside=True)
        mark = self.history.mark() if self.history is not None else None
        index = self.history.index if self.history is not None else 0
        self._states[name] = SavedState(snapshot, self._control.runs, place, mark, index)

    def load(self, name: str) -> Request | None:
        """Go back to a state.

        Returns:
            None where the machine is there; else what the run has to do to come there.

        Raises:
            UsageError: there is no such, or the way to it is gone.
        """
        state = self._states.get(name)
        if state is None:
            known = ", ".join(self._states) or "none"
            raise UsageError(f"no state {name!r} is kept (kept: {known})")
        if state.runs != self._control.runs:
            return self._way_to(name, state)
        self._system.machine.snapshots.restore(state.snapshot, inside=True)
        self._control.forget()
        if self.history is not None and state.mark is not None:
            self.history.moved(state.mark)
        return None

    def _way_to(self, name: str, state: SavedState) -> Request:
        elsewhere = f"state {name!r} was kept at {state.place}, in a call from Python that is not the present one"
        if self.history is None or state.mark is None:
            raise UsageError(f"{elsewhere}, and no history is kept (--no-reverse)")
        if state.mark.epoch != self.history.mark().epoch:
            raise UsageError(
                f"{elsewhere}, and registers or memory were changed by hand since: no run leads there again"
            )
        if state.index < self.history.first:
            raise UsageError(f"{elsewhere}, at instruction {state.index}: the history begins at {self.history.first}")
        return Request(Back.GOTO, index=state.index)

    def describe(self) -> str:
        """The states, one line each."""
        present = self._control.runs
        lines = [
            f"{name}: {state.place}{'' if state.runs == present else ' (in a call that is not the present one)'}"
            for name, state in self._states.items()
        ]
        return "\n".join(lines or ["no state is kept"]) + "\n"
