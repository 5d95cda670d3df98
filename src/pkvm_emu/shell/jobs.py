"""Tasks of the shell and who runs next: generators that yield what they wait for, on the system's own clock.

Nothing here looks at the host's time. While every task waits for a moment, the emulated clock jumps to the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")
#: What a round of commands takes while some task waits for a moment.
TURN_NS = 100_000
SIGPIPE, SIGTERM, SIGINT = 13, 15, 2
#: An exit status above this is the number of the signal that ended the command.
SIGNAL_BASE = 128


class Wait(NamedTuple):
    """What a task waits for: ``ready()`` or the moment ``until`` (nanoseconds since boot), whatever comes first.

    ``on_file`` marks a read that blocks until the system produces something.
    """

    ready: Callable[[], bool]
    until: int | None = None
    on_file: bool = False


#: Lets the other tasks run, and goes on.
RUNNABLE = Wait(lambda: True)
Steps = Generator[Wait, None, T]


class SignalStatus(int):
    """An exit status of a command that a signal ended (128 + its number)."""

    @property
    def signal(self) -> int:
        """The signal."""
        return int(self) - SIGNAL_BASE


class KilledBySignal(Exception):
    """Ends the process that the current task stands for."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.status = SignalStatus(SIGNAL_BASE + signal)


class BlockedForever(Exception):
    """A read waits, and nothing that could end the waiting is left."""


class Clock(Protocol):
    """The time that tasks see."""

    def now(self) -> int:
        """Nanoseconds since boot."""
        ...

    def advance_to(self, moment: int) -> None:
        """Let the time pass up to ``moment``."""
        ...


class Task:
    """One process of the shell: a pipeline stage, a background job, the script itself."""

    def __init__(self, number: int, steps: Steps[int], background: bool) -> None:
        self.number = number
        #: Of a background job, what ``%1`` means.
        self.job = 0
        self.background = background
        self.steps = steps
        self.wait = RUNNABLE
        self.done = False
        self.status = 0
        self.error: BlockedForever | None = None


class Scheduler:
    """Runs tasks in turn until the one that matters is done."""

    def __init__(self, clock: Clock, first_number: int = 100) -> None:
        self.clock = clock
        self.tasks: list[Task] = []
        self._next_number = first_number

    def spawn(self, steps: Steps[int], background: bool = False) -> Task:
        """Add a task; it runs when the present one waits."""
        task = Task(self._next_number, steps, background)
        self._next_number += 1
        self.tasks.append(task)
        return task

    def run(self, steps: Steps[int]) -> int:
        """Run a foreground task, and the others beside it; its status."""
        task = self.spawn(steps)
        try:
            while not task.done:
                if not self._turn():
                    self._idle(task)
        finally:
            self.kill(task)
        return task.status

    def kill(self, task: Task, signal: int = SIGTERM) -> None:
        """End a task where it waits; its files are closed."""
        if not task.done:
            task.done = True
            task.status = SignalStatus(SIGNAL_BASE + signal)
            task.steps.close()
        if task in self.tasks:
            self.tasks.remove(task)

    def kill_all(self) -> None:
        """End everything that still runs."""
        for task in reversed(list(self.tasks)):
            self.kill(task)

    def _turn(self) -> bool:
        """One step of every task that can go on; False when none can."""
        moved = False
        if any(task.wait.until is not None for task in self.tasks):
            # Else a job that never waits would keep the moment that another waits for from coming.
            self.clock.advance_to(self.clock.now() + TURN_NS)
        for task in list(self.tasks):
            if task.done:
                continue
            wait = task.wait
            due = wait.until is not None and self.clock.now() >= wait.until
            if due or task.error is not None or wait.ready():
                moved = True
                self._step(task)
        return moved

    def _step(self, task: Task) -> None:
        error, task.error = task.error, None
        try:
            task.wait = task.steps.throw(error) if error is not None else next(task.steps)
        except StopIteration as end:
            self._finish(task, end.value)
        except KilledBySignal as killed:
            self._finish(task, killed.status)
        except BlockedForever:
            self._finish(task, SignalStatus(SIGNAL_BASE + SIGINT))

    def _finish(self, task: Task, status: int) -> None:
        task.done = True
        task.status = status
        if task in self.tasks:
            self.tasks.remove(task)

    def _idle(self, foreground: Task) -> None:
        moments = [task.wait.until for task in self.tasks if task.wait.until is not None]
        if moments:
            self.clock.advance_to(min(moments))
            return
        # What ^C would do to the processes in the foreground.
        blocked = [task for task in self.tasks if task.wait.on_file and not task.background]
        for task in blocked or [foreground]:
            task.error = BlockedForever()
