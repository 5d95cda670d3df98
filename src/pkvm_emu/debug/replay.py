"""Going back: which state to begin at, what to execute from there, and where to stop.

To go to an index is to bring back the last state before it and execute up to it (a *seek*). To find the last breakpoint or
watchpoint that was passed is to execute a stretch again and note each (a *search*), the stretch before where there was none, and
so on to the beginning of the history; then a seek goes to the place. Nothing stops in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pkvm_emu.debug.history import Checkpoint, History
from pkvm_emu.debug.stops import Back, Request, Stop, StopKind
from pkvm_emu.debug.watchpoints import READ, WRITE, Watchpoint

if TYPE_CHECKING:
    from pkvm_emu.debug.breakpoints import Breakpoint, Outcome
    from pkvm_emu.debug.control import RunControl

#: States that are kept on a long way: so many instructions before its end.
_MILESTONES = (4_096, 256)
_LONG_WAY = 16_384


@dataclass(slots=True)
class Seek:
    """Execute up to an index, and stop there.

    Attributes:
        target: the index.
        stop: what to say there; registers are those of the place.
    """

    target: int
    stop: Stop
    milestones: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Search:
    """Execute up to an index, and note the last place that matters.

    Attributes:
        target: the index.
        begin: where it begins.
        found: the last place, and the stop to report there.
    """

    target: int
    begin: int
    found: tuple[int, Stop] | None = None


class Replay:
    """Performs requests to go back.

    Args:
        control: run control; asks at each boundary (:meth:`due`) while this is :attr:`is_active`.
        history: where the states are.

    Attributes:
        history: the history.
    """

    def __init__(self, control: RunControl, history: History) -> None:
        self._control = control
        self.history = history
        self._job: Seek | Search | None = None
        self._request = Request(Back.STEP)
        self._origin = 0
        self._point: Watchpoint | None = None
        self._seen: object = None
        self._was_touched = False
        self._answer: Callable[[], str] | None = None

    @property
    def is_active(self) -> bool:
        """The machine is on its way to another point of the history."""
        return self._job is not None

    @property
    def target(self) -> int | None:
        """Where the engine has to stop."""
        job = self._job
        if isinstance(job, Seek) and job.milestones:
            return job.milestones[0]
        return None if job is None else job.target

    def begin(self, request: Request, stop: Stop) -> None:
        """Set out from the stop where the machine is.

        Raises:
            Unwind, Rewind: as for :meth:`History.return_to`.
        """
        history = self.history
        self._request, self._origin = request, history.index
        if request.kind is Back.GOTO:
            is_ahead = request.index >= history.index and stop.kind not in (StopKind.ERROR, StopKind.END)
            self._seek(max(request.index, history.first), _bare(StopKind.STEP, stop), is_ahead)
        elif history.nearest(history.index) is None:
            # Nothing is kept: the history was begun anew in a run that has returned.
            self._job = Seek(history.index, _bare(StopKind.BEGIN, stop))
        elif request.kind is Back.STEP:
            target = self._steps_back(request.count)
            if target is None:
                self._seek(history.first, _bare(StopKind.BEGIN, stop))
            else:
                self._seek(target, _bare(StopKind.STEP, stop))
        else:
            if request.watched:
                self._point = self._control.watchpoints.add(WRITE, request.watched[0][0], 0, request.watched)
            self._search(history.index)

    def _steps_back(self, count: int) -> int | None:
        index: int | None = self.history.index
        for _ in range(count):
            index = self.history.before(index, max(self._control.depth, 1)) if index is not None else None
        return index

    def _seek(self, target: int, stop: Stop, is_ahead: bool = False) -> None:
        """``is_ahead``: the way leads on from here; else from a state that is brought back."""
        job = self._job = Seek(target, stop)
        if is_ahead:
            self.arm()
            return
        state = self._state(target)
        if target - state.index > _LONG_WAY:
            job.milestones = [target - distance for distance in _MILESTONES]
        self.arm()
        self.history.return_to(state)

    def _search(self, end: int) -> None:
        state = self._state(end - 1)
        self._job = Search(end, state.index)
        self._seen, self._was_touched = _NOT_SEEN, False
        self.arm()
        self.history.return_to(state)

    def arm(self) -> None:
        """Let in force be what the job at hand needs: a seek only what keeps track of something."""
        is_seek = isinstance(self._job, Seek)
        self._control.breakpoints.arm(None, only_internal=is_seek)
        self._control.watchpoints.is_passing = is_seek

    def _state(self, index: int) -> Checkpoint:
        state = self.history.nearest(max(index, self.history.first))
        assert state is not None, "a flow begins with a state"
        return state

    # On the way

    def due(self) -> Stop | None:
        """At a boundary: the stop at the place, once it is reached."""
        control, job = self._control, self._job
        if control.is_interrupted:
            self._finish()
            return None
        if isinstance(job, Search):
            self._look(job)
        if control.has_own_event or job is None:
            return None
        index = self.history.index
        if isinstance(job, Seek) and job.milestones and index >= job.milestones[0]:
            if index == job.milestones.pop(0):
                self.history.keep(is_near=True)
            return None
        return self._arrived() if index >= job.target else None

    def failed(self) -> bool:
        """A run ends with an error here. True: it does not, the machine is elsewhere."""
        job = self._job
        if job is None or self.history.index < job.target:
            return False
        if isinstance(job, Search):
            self._arrived()
            return True
        self._finish()
        return False

    def ended(self) -> None:
        """The flow has come to its end on the way."""
        self._finish()

    def _arrived(self) -> Stop | None:
        job, history = self._job, self.history
        if isinstance(job, Search):
            if job.found is not None:
                self._seek(*job.found)
            elif job.begin > history.first:
                self._search(job.begin)
            elif self._request.kind is Back.FIND:
                self._back_to_origin(None, 0)
            else:
                self._seek(history.first, _NOWHERE._replace(kind=StopKind.BEGIN))
            return None
        assert job is not None
        if self._request.kind is Back.FIND and self._answer is None:
            self._back_to_origin(self._place(job.stop), job.target)
            return None
        stop = self._place(job.stop)
        if self._answer is not None:
            stop = stop._replace(text=self._answer())
        self._finish()
        return stop

    def _back_to_origin(self, stop: Stop | None, index: int) -> None:
        text = self._request.describe(stop, index)
        self._answer = lambda: text
        self._drop_point()
        self._seek(self._origin, _NOWHERE._replace(kind=StopKind.EVENT))

    def _place(self, stop: Stop) -> Stop:
        here = self._control.make_stop(stop.kind)
        return stop._replace(cpu=here.cpu, pc=here.pc, el=here.el)

    def _finish(self) -> None:
        self._job, self._answer = None, None
        self._drop_point()
        # Breakpoints are in force at the place, so that the one there is passed when the run goes on.
        self._control.breakpoints.arm(None)
        points = self._control.watchpoints
        points.is_passing = False
        points.settle(is_before=False)
        points.note()

    def _drop_point(self) -> None:
        if self._point is not None:
            self._control.watchpoints.remove(self._point.kind, self._point.va, self._point.size)
            self._point = None

    # What a search notes

    def reached(self, point: Breakpoint, outcome: Outcome) -> bool:
        """Inside the hook of a breakpoint. True: the engine has to stand still to answer."""
        job = self._job
        if not isinstance(job, Search) or self._request.kind is Back.FIND or outcome is False:
            return False
        index = self.history.counter.now
        if index >= job.target:
            return False
        if isinstance(outcome, Stop):
            job.found = index, outcome
        elif outcome is True:
            job.found = index, _NOWHERE._replace(kind=StopKind.BREAKPOINT, hardware=point.hardware)
        else:
            return True
        return False

    def touched(self, point: Watchpoint) -> None:
        """Inside the hook of a watchpoint."""
        job = self._job
        if isinstance(job, Search):
            self._was_touched = True
            if self._is_wanted(point):
                now = self.history.counter.now
                job.found = now + self._request.stops_after, self._watch_stop(point, "")

    def serving(self) -> None:
        """A service is about to be performed: what instructions wrote up to now is known by their hooks."""
        if self._was_touched:
            self._was_touched = False
            self._control.watchpoints.note()

    def served(self, name: str) -> None:
        """A service has been performed: what it wrote passed no hook."""
        job = self._job
        if isinstance(job, Search):
            counter = self.history.counter
            after = counter.now + 1 if counter.is_running else counter.index
            self._compare(job, after, f"written by {name}")

    def _look(self, job: Search) -> None:
        """At a boundary: what changed without a service, and stops that a question decides about."""
        self.serving()
        self._compare(job, self.history.index, "written by Python")
        stop = self._control.answer_question()
        if stop is not None and self.history.index < job.target:
            job.found = self.history.index, stop

    def _compare(self, job: Search, after: int, text: str) -> None:
        """Note what has changed since this was called last: before the index ``after``, by one step."""
        index = after if self._request.stops_after else self.history.before(after, self._control.depth)
        points = self._control.watchpoints
        for point in points.all_changed() if points.points else ():
            if index is not None and point.kind != READ and self._is_wanted(point):
                job.found = index, self._watch_stop(point, text)
        if self._request.probe is not None:
            seen = self._request.probe()
            if self._seen is not _NOT_SEEN and seen != self._seen and index is not None:
                job.found = index, _NOWHERE._replace(text=text)
            self._seen = seen

    def _is_wanted(self, point: Watchpoint) -> bool:
        return point is self._point or self._request.kind is not Back.FIND

    @staticmethod
    def _watch_stop(point: Watchpoint, text: str) -> Stop:
        return _NOWHERE._replace(kind=StopKind.WATCHPOINT, watch=(point.kind, point.va), text=text)


_NOT_SEEN = object()
_NOWHERE = Stop(StopKind.STEP, 0, 0, 0)


def _bare(kind: StopKind, stop: Stop) -> Stop:
    return stop._replace(kind=kind, text="", watch=None, hardware=False, error=None)
