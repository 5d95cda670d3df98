"""States of a stopped run that are gone back to: memory, registers and journal, within one run from Python.

The Python functions on the stack stand at the same place for as long as the run loop that they wait for has not returned; so
everything else can be put back to an earlier point of that run. A state of a run that has returned cannot: the
function that was on the stack is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.control import RunControl
    from pkvm_emu.debug.history import History, Mark
    from pkvm_emu.machine.snapshot import Snapshot
    from pkvm_emu.system import System


@dataclass(frozen=True, slots=True)
class SavedState:
    """A state and the runs (outermost first) that were under way."""

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

    def load(self, name: str) -> None:
        """Go back to a state.

        Raises:
            UsageError: there is no such, or the run in which it was kept has returned, or has gone deeper.
        """
        state = self._states.get(name)
        if state is None:
            known = ", ".join(self._states) or "none"
            raise UsageError(f"no state {name!r} is kept (kept: {known})")
        if state.runs != self._control.runs:
            raise UsageError(
                f"state {name!r} was kept at {state.place}, in a call from Python that is not the present one"
            )
        self._system.machine.snapshots.restore(state.snapshot, inside=True)
        self._control.forget()
        if self.history is not None and state.mark is not None:
            self.history.moved(state.mark)

    def index_of(self, name: str) -> int | None:
        """Where in the history a state is that :meth:`load` cannot bring back, but the history can."""
        state = self._states.get(name)
        if state is None or state.mark is None or self.history is None or state.runs == self._control.runs:
            return None
        return state.index if self.history.mark().epoch == state.mark.epoch else None

    def describe(self) -> str:
        """The states, one line each."""
        present = self._control.runs
        lines = [
            f"{name}: {state.place}{'' if state.runs == present else ' (in a call that is not the present one)'}"
            for name, state in self._states.items()
        ]
        return "\n".join(lines or ["no state is kept"]) + "\n"
