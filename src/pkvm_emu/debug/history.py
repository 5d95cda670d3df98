"""The history of a debugged run: where in it the machine is, the states kept of it, and what the user changed.

A point of the history is an *index*: how many instructions were executed before it (``machine/counting.py``). Everything that
the guest does follows from its state, so any point is reached again from an earlier state by executing the same number of
instructions. States are kept at the beginning of each act (the boot, a call), where no guest code runs, and as *checkpoints* inside
runs. A checkpoint is gone back to while the Python functions that were on the stack when it was kept still are; where more have
come, an exception takes those away first. Where one has returned since, the way leads over the beginning of the act.

What the user changes at a stop (registers, memory) ends the future that was recorded. It belongs to the history: who goes on
from before it comes to the same change again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.debug.flow import Rewind, Unwind
from pkvm_emu.machine.counting import InstructionCounter

if TYPE_CHECKING:
    from pkvm_emu.debug.control import RunControl
    from pkvm_emu.debug.flow import Flow
    from pkvm_emu.machine.machine import Machine
    from pkvm_emu.machine.snapshot import Snapshot

#: The engine is looked after so often, in instructions: Ctrl-C is answered, and checkpoints are kept, in between.
_SLICE = 100_000
#: What a stretch costs to execute again: nanoseconds an instruction, and an exception or service.
_INSTRUCTION_NS, _EVENT_NS = 10, 7_000
#: How much of that lies between two checkpoints.
_DISTANCE_NS = 25_000_000
_MOST_CHECKPOINTS = 128
_MOST_NEAR = 8
#: Without an exception or a call for so many instructions, the guest makes no progress.
_QUIET = 1_000_000_000


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A kept state.

    Attributes:
        index: where.
        snapshot: the machine.
        runs: the runs (``Core.live_runs``) that were under way; none at the beginning of an act.
        segments: how long the log of depths was.
        edits: how many of the user's changes had been made.
        is_near: kept on the way back, so that further steps back are short.
    """

    index: int
    snapshot: Snapshot
    runs: tuple[int, ...]
    segments: int
    edits: int
    is_near: bool = False


class Mark(NamedTuple):
    """What the history has to know of a state that was kept elsewhere."""

    epoch: int
    segments: int
    edits: int


class History:
    """The history of one flow. Making it lets the engine count.

    Args:
        machine: what runs.
        control: run control.
        flow: the acts.

    Attributes:
        counter: counts instructions.

    Raises:
        EmulatorError: the engine cannot count.
    """

    def __init__(self, machine: Machine, control: RunControl, flow: Flow) -> None:
        self._machine = machine
        self._core = machine.core
        self._engine = machine.engine
        self._control = control
        self._flow = flow
        self.counter = machine.engine.counter = InstructionCounter(machine.engine)
        #: Changes when the user changed something: what was noted before may lie in another future.
        self._epoch = 0
        self._acts: dict[int, Checkpoint] = {}
        self._kept: list[Checkpoint] = []
        #: Where the depth of runs changed: at which index, to which depth.
        self._starts: list[int] = []
        self._depths: list[int] = []
        self._edits: list[tuple[int, Callable[[], None]]] = []
        self._edits_made = 0
        self._cost = 0
        self._quiet_events, self._quiet_since = -1, 0
        flow.before_act = self._begin_act

    def detach(self) -> None:
        """Count no more."""
        self._machine.snapshots.drop(kept.snapshot for kept in [*self._kept, *self._acts.values()])
        self._kept.clear()
        self._acts.clear()
        self._engine.counter = None

    @property
    def index(self) -> int:
        """Where the machine is."""
        return self.counter.index

    @property
    def first(self) -> int:
        """The earliest index that can be gone back to."""
        runs = self._core.live_runs
        indexes = [kept.index for kept in self._kept if _is_prefix(kept.runs, runs)]
        return min([act.index for act in self._acts.values()] + indexes, default=self.counter.index)

    @property
    def checkpoints(self) -> int:
        """How many states are kept."""
        return len(self._kept) + len(self._acts)

    # The log of depths

    def entered(self) -> None:
        """A run, or a turn, begins or goes on, at the present index and depth."""
        depth = self._core.depth
        if not self._depths or self._depths[-1] != depth:
            self._starts.append(self.counter.index)
            self._depths.append(depth)

    def before(self, index: int, depth: int) -> int | None:
        """The last point before ``index`` where no more than ``depth`` runs were under way; None before the first.

        A service that ran guest code lies deeper, so it is one step from there.
        """
        index -= 1
        if index < self.first:
            return None
        at = bisect_right(self._starts, index) - 1
        while at >= 0 and self._depths[at] > depth:
            index = self._starts[at] - 1
            at -= 1
            while at >= 0 and self._starts[at] > index:
                at -= 1
        return index if at >= 0 and index >= self.first else None

    # Running

    def boundary(self, may_keep: bool = True) -> None:
        """Between two instructions, with nothing pending: make the user's changes again, keep the state if it is time."""
        index = self.counter.index
        while self._edits_made < len(self._edits) and self._edits[self._edits_made][0] <= index:
            self._edits[self._edits_made][1]()
            self._edits_made += 1
        if may_keep and self._cost >= _DISTANCE_NS:
            self._cost = 0
            runs = self._core.live_runs
            if not any(kept.index >= index and _is_prefix(kept.runs, runs) for kept in self._kept):
                self.keep()

    def run(self, pc: int, target: int | None = None) -> tuple[bool, str | None]:
        """Execute from ``pc``, at most to ``target``, for one slice.

        Returns:
            Whether the run loop has to look at what happened, and why the guest makes no progress where that is the reason.
        """
        core, counter = self._core, self.counter
        begin, events = counter.index, core.events
        limit = begin + _SLICE
        if target is not None:
            limit = min(limit, target)
        if self._edits_made < len(self._edits):
            limit = min(limit, self._edits[self._edits_made][0])
        counter.limit = limit
        try:
            self._engine.start(pc)
        finally:
            counter.limit = None
        self._cost += (counter.index - begin) * _INSTRUCTION_NS + (core.events - events) * _EVENT_NS
        if core.has_own_event:
            return True, None
        if self._control.has_stop:
            return False, None
        if counter.index < limit:
            return True, None
        if core.events != self._quiet_events or counter.index < self._quiet_since:
            self._quiet_events, self._quiet_since = core.events, counter.index
        elif counter.index - self._quiet_since > _QUIET:
            return True, core.watchdog.describe_loop(core)
        return False, None

    # Keeping states

    def _begin_act(self, number: int) -> None:
        self._drop_dead()
        if number not in self._acts:
            self._acts[number] = self._take()

    def keep(self, is_near: bool = False) -> None:
        """Keep the present state."""
        self._drop_dead()
        index, runs = self.counter.index, tuple(self._core.live_runs)
        if any(kept.index == index and kept.runs == runs for kept in self._kept):
            return
        at = bisect_right(self._kept, index, key=lambda kept: kept.index)
        self._kept.insert(at, self._take(is_near))
        near = [kept for kept in self._kept if kept.is_near]
        if len(near) > _MOST_NEAR:
            # Those far from here serve nobody any more.
            self._drop(sorted(near, key=lambda kept: -abs(kept.index - index))[: len(near) - _MOST_NEAR])
        if len(self._kept) > _MOST_CHECKPOINTS:
            self._drop(self._kept[1 : _MOST_CHECKPOINTS // 2 : 2])

    def _take(self, is_near: bool = False) -> Checkpoint:
        runs = tuple(self._core.live_runs)
        snapshot = self._machine.snapshots.take(inside=bool(runs))
        return Checkpoint(self.counter.index, snapshot, runs, len(self._starts), self._edits_made, is_near)

    def _drop(self, unwanted: list[Checkpoint]) -> None:
        if unwanted:
            chosen = set(map(id, unwanted))
            self._kept = [kept for kept in self._kept if id(kept) not in chosen]
            self._machine.snapshots.drop(kept.snapshot for kept in unwanted)

    def _drop_dead(self) -> None:
        runs = self._core.live_runs
        self._drop([kept for kept in self._kept if not _is_prefix(kept.runs, runs)])

    # Going to another point

    def nearest(self, index: int) -> Checkpoint | None:
        """The last state at or before ``index`` from which that can be reached."""
        runs = self._core.live_runs
        found: Checkpoint | None = None
        for act in self._acts.values():
            if act.index <= index and (found is None or act.index >= found.index):
                found = act
        for kept in self._kept:
            if kept.index <= index and (found is None or kept.index >= found.index) and _is_prefix(kept.runs, runs):
                found = kept
        return found

    def return_to(self, checkpoint: Checkpoint) -> None:
        """Bring a state back. It is there when this returns; or an exception does it, once the stack is as it was.

        Raises:
            Unwind: to a run further out.
            Rewind: to the beginning of an act.
        """
        if not checkpoint.runs:
            number = next(number for number, act in self._acts.items() if act is checkpoint)
            raise Rewind(number, lambda: self.restore(checkpoint))
        if checkpoint.runs != tuple(self._core.live_runs):
            raise Unwind(checkpoint.runs[-1], lambda: self.restore(checkpoint))
        self.restore(checkpoint)

    def was_unwound(self, unwind: Unwind) -> bool:
        """The innermost run is left by ``unwind``. True: it was meant to come here, and the state is back."""
        if self._core.live_runs[-1] != unwind.run:
            return False
        unwind.prepare()
        return True

    def restore(self, checkpoint: Checkpoint) -> None:
        """Bring a state back, with the stack as it was."""
        self._machine.snapshots.restore(checkpoint.snapshot, inside=bool(checkpoint.runs))
        self._core.forget_event()
        self._control.forget()
        self._go_on_from(checkpoint.segments, checkpoint.edits)

    # What the user does

    def edited(self, again: Callable[[], None]) -> None:
        """The user changed the state at this stop.

        Args:
            again: makes the same change again.
        """
        index = self.counter.index
        self._epoch += 1
        del self._edits[self._edits_made :]
        self._edits.append((index, again))
        self._edits_made += 1
        self._drop([kept for kept in self._kept if kept.index > index])
        later = [number for number in self._acts if number > self._flow.position]
        self._machine.snapshots.drop(self._acts.pop(number).snapshot for number in later)

    def mark(self) -> Mark:
        """The present point, for :meth:`moved`."""
        return Mark(self._epoch, len(self._starts), self._edits_made)

    def moved(self, mark: Mark) -> None:
        """The machine was put into the state of ``mark`` from outside.

        Where the user changed something since, that state lies on no way that leads here: the history begins anew with it.
        """
        if mark.epoch == self._epoch:
            self._go_on_from(mark.segments, mark.edits)
        else:
            self._restart()

    def _go_on_from(self, segments: int, edits: int) -> None:
        del self._starts[segments:], self._depths[segments:]
        self._edits_made = edits
        self._cost, self._quiet_events = 0, -1
        self._drop_dead()

    def _restart(self) -> None:
        self._epoch += 1
        self._edits.clear()
        self._edits_made = 0
        self._drop(list(self._kept))
        self._machine.snapshots.drop(act.snapshot for act in self._acts.values())
        self._acts.clear()
        self._starts, self._depths = [self.counter.index], [self._core.depth]
        self.keep()


def _is_prefix(runs: tuple[int, ...], live: list[int]) -> bool:
    return len(runs) <= len(live) and all(a == b for a, b in zip(runs, live, strict=False))
