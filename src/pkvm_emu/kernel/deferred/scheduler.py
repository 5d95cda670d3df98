"""The scheduler: who runs next, and how a context waits.

Nothing here preempts. Tasks run one after the other, each until it sleeps or ends, in the order in which they became ready;
expired timers and soft interrupts come before the next task. Time stands still while there is something to run and then goes on
to the next timer or deadline, so a run is the same every time.

A task that sleeps in a call of its own leaves the CPU whole: its registers are saved with the PC at the call, which is made
again when the task runs next (:class:`~pkvm_emu.kernel.sync.Parked`). Where a Python function stands in between (module init, a
notifier, a callback), the others run inside the wait, on their own stacks.

Sources: kernel/sched/core.c, kernel/softirq.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pkvm_emu.kernel.deferred.softirqs import SoftIrqs
from pkvm_emu.kernel.deferred.tasks import RUNNING, Task, Tasks, TaskState, Wait
from pkvm_emu.kernel.deferred.timers import TimerQueue
from pkvm_emu.kernel.devicetree.mmio import MmioWindows
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.sync import Locks, Parked, TryAgain
from pkvm_emu.kernel.time import HZ, NS_PER_SECOND, Clock
from pkvm_emu.machine.core import Stuck
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

F = TypeVar("F", bound=Callable[..., None])
NS_PER_JIFFY = NS_PER_SECOND // HZ
#: ``MAX_SCHEDULE_TIMEOUT``: no limit.
FOREVER = (1 << 63) - 1
#: How far an idle host looks ahead, and how many things it lets happen at most.
_IDLE_NS, _IDLE_STEPS = 10 * NS_PER_SECOND, 4096
#: A wait without a limit during which others run for so long is a hung task (``CONFIG_DEFAULT_HUNG_TASK_TIMEOUT``).
_HUNG_NS = 120 * NS_PER_SECOND
#: Things that may happen within one wait or one idling before they count as endless.
_MAX_STEPS = 20_000


#: What happens when the function of a task of a kind has returned.
_ENDINGS: dict[str, Callable[[Kernel, Task], None]] = {}


def task_ending(kind: str) -> Callable[[F], F]:
    """Have the decorated ``function(kernel, task)`` called when the function of a task of a kind has returned."""

    def register(function: F) -> F:
        _ENDINGS[kind] = function
        return function

    return register


@kernel_part
class Scheduler(State):
    """Runs what is ready, and lets contexts wait.

    Attributes:
        ready: the tasks that want to run, first come first served.

    Args:
        kernel: whose tasks.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.scheduler")
        self._kernel = kernel
        self._tasks = kernel.part(Tasks)
        self._timers = kernel.part(TimerQueue)
        self._softirqs = kernel.part(SoftIrqs)
        self._clock = kernel.part(Clock)
        self._windows = kernel.part(MmioWindows)
        self.ready: StateList[int] = StateList(kernel.machine.journal, "kernel.scheduler.ready")
        #: The runs of tasks that are under way, innermost last: the task and the depth of its run.
        self._running: list[tuple[Task, int]] = []

    # Making tasks ready

    def wake(self, task: Task) -> bool:
        """``wake_up_process``: a task that sleeps, or was never started, wants to run; whether it was one."""
        was_asleep = self._tasks.state_of(task) != RUNNING
        self._tasks.set_state(task, RUNNING)
        if task.state not in (TaskState.SLEEPING, TaskState.CREATED):
            return was_asleep
        task.state = TaskState.READY
        self.ready.append(task.va)
        return True

    def wake_waiters(self, place: int) -> int:
        """Wake what sleeps on an address; how many did."""
        found = [task for task in self._tasks.by_va.values() if task.wait is not None and task.wait.place == place]
        return sum(self.wake(task) for task in found)

    # Waiting

    def wait(self, what: str, place: int, is_over: Callable[[], bool], timeout_ns: int | None = None) -> bool:
        """Let the current context wait; everything else runs meanwhile.

        Args:
            what: what it waits for, for messages.
            place: the guest address that :meth:`wake_waiters` names; 0 for none.
            is_over: whether there is no need to wait (any longer). May be called often, must not change anything.
            timeout_ns: nanoseconds from the first call on; None for no limit.

        Returns:
            False where the time is over.

        Raises:
            Parked: the current task sleeps; its call is made again.
            TryAgain: the CPU takes turns with others; its call is made again.
            Stuck: nothing can ever end the wait.
        """
        task = self._tasks.current
        deadline = self._deadline(task, timeout_ns)
        self._kernel.part(Locks).may_sleep()
        try:
            return self._wait(task, what, place, is_over, deadline)
        except (Parked, TryAgain):
            raise
        except BaseException:
            task.wait = None
            raise

    def _wait(self, task: Task, what: str, place: int, is_over: Callable[[], bool], deadline: int | None) -> bool:
        started, steps = self._kernel.uptime_ns(), 0
        while True:
            steps += 1
            if steps > _MAX_STEPS or (deadline is None and self._kernel.uptime_ns() - started > _HUNG_NS):
                raise Stuck(self._hung(task, what))
            if is_over():
                return self._end_wait(task, True)
            if deadline is not None and self._kernel.uptime_ns() >= deadline:
                return self._end_wait(task, False)
            task.wait = Wait(what, place, deadline)
            if self._can_park(task):
                self._sleep(task)
                raise Parked
            if self._step(deadline):
                continue
            if deadline is not None:
                self._sleep_until(deadline)
            elif self._kernel.machine.core.in_turns:
                raise self._kernel.part(Locks).wait(what, place)
            else:
                raise Stuck(self._nothing_wakes(task, what))

    @property
    def has_slept(self) -> bool:
        """The call under way is one that the current task makes again: it has slept in it."""
        return self._tasks.current.wait is not None

    def end_wait(self) -> None:
        """The call under way need not wait any more."""
        self._end_wait(self._tasks.current, True)

    def sleep(self, nanoseconds: int, what: str) -> None:
        """Let the current context sleep for a time."""
        self.wait(what, 0, lambda: False, nanoseconds)

    def schedule(self, what: str, timeout_ns: int | None = None) -> bool:
        """``schedule()``: give the CPU away.

        A task whose state is TASK_RUNNING only lets the others run; one that set another state sleeps until it is woken.

        Returns:
            False where the time is over.
        """
        task = self._tasks.current
        if task.queue:
            what = f"wait queue {self._kernel.describe(task.queue)}"
        if self._tasks.state_of(task) == RUNNING and task.wait is None:
            self._kernel.part(Locks).may_sleep()
            if not self.run_ready():
                # Whoever gives the CPU away again and again waits for something: time goes on.
                self._clock.advance(NS_PER_JIFFY)
            return True
        woken = self.wait(what, 0, lambda: self._tasks.state_of(task) == RUNNING, timeout_ns)
        self._tasks.set_state(task, RUNNING)
        return woken

    def _deadline(self, task: Task, timeout_ns: int | None) -> int | None:
        if task.wait is not None:
            return task.wait.deadline
        return None if timeout_ns is None else self._kernel.uptime_ns() + max(timeout_ns, 0)

    def _end_wait(self, task: Task, in_time: bool) -> bool:
        if task.wait is not None:
            task.wait = None
            self._kernel.part(Locks).done_waiting()
        return in_time

    def _can_park(self, task: Task) -> bool:
        """The task's own run is the innermost, with no Python of the kernel's in between."""
        return bool(self._running) and self._running[-1] == (task, self._kernel.machine.core.depth - 1)

    def _sleep(self, task: Task) -> None:
        task.state = TaskState.SLEEPING
        if task.wait is not None and task.wait.deadline is not None:
            self._timers.add_deadline(task.va, task.wait.deadline)

    def _sleep_until(self, deadline: int) -> None:
        self._clock.advance(max(deadline - self._kernel.uptime_ns(), 0))

    def _nothing_wakes(self, task: Task, what: str) -> str:
        called = self._kernel.machine.core.describe(self._kernel.machine.engine.read("x30") - 4, 1)
        asleep = [
            f"{other.label} waits for {other.wait.what}"
            for other in self._tasks.by_va.values()
            if other is not task and other.wait is not None
        ]
        others = f" ({'; '.join(asleep)})" if asleep else ""
        return f"{task.label} waits for ever: {called} waits for {what}, and nothing can wake it{others}"

    def _hung(self, task: Task, what: str) -> str:
        called = self._kernel.machine.core.describe(self._kernel.machine.engine.read("x30") - 4, 1)
        return (
            f"{task.label} is blocked for more than 120 s: {called} waits for {what} while others run: {self._busy()}"
        )

    def _busy(self) -> str:
        return "; ".join(self.pending()) or "nothing is left"

    # Running

    def run_ready(self) -> bool:
        """Run everything that is ready or due; time does not go on by itself. Whether there was anything."""
        count = 0
        # What makes itself ready again and again has its next turns later.
        while count < _IDLE_STEPS and self._step(self._kernel.uptime_ns()):
            count += 1
        return count > 0

    def idle(self, nanoseconds: int | None = None) -> None:
        """The host has nothing to do: let deferred work run.

        Args:
            nanoseconds: how long. None: until everything that is pending now has had its turn, 10 s at most; what
                starts itself again runs on with the next idling.
        """
        self.run_ready()
        end = self._kernel.uptime_ns() + (_IDLE_NS if nanoseconds is None else nanoseconds)
        if nanoseconds is not None:
            steps = 0
            while self._step(end):
                steps += 1
                if steps > _MAX_STEPS:
                    raise Stuck(
                        f"{_MAX_STEPS} things happened while the host idled, and there is no end of them: {self._busy()}"
                    )
            self._sleep_until(end)
            return
        pending = self._timers.armed()
        for _ in range(_IDLE_STEPS):
            # Work that has begun goes on to its end, whatever it sleeps for.
            pending = (pending & self._timers.armed()) | self._sleeping_workers()
            if not pending or not self._step(end):
                break
        self.run_ready()

    def _sleeping_workers(self) -> set[int]:
        return {
            va for va, entry in self._timers.entries.items() if entry.kind == "deadline" and self._is_worker(va & ~1)
        }

    def _is_worker(self, va: int) -> bool:
        task = self._tasks.by_va.get(va)
        return task is not None and task.kind == "worker"

    def _step(self, horizon: int | None) -> bool:
        """Let one thing happen, up to the time ``horizon``; whether there was one."""
        now = self._kernel.uptime_ns()
        if self._windows.deliver() or self._timers.fire(now) or self._softirqs.run() or self._run_next():
            return True
        following = self._timers.next_time()
        if following is None or (horizon is not None and following > horizon):
            return False
        self._sleep_until(following)
        return True

    def _run_next(self) -> bool:
        if not self.ready:
            return False
        va = self.ready[0]
        del self.ready[0]
        task = self._tasks.by_va.get(va)
        if task is not None and task.state is TaskState.READY:
            self._run(task)
        return True

    def _run(self, task: Task) -> None:
        """Put a task on a CPU until it sleeps or ends."""
        machine = self._kernel.machine
        wanted = task.cpu
        if wanted is None or wanted == machine.current.index or not machine.power.is_on(wanted):
            self._run_here(task)
        elif wanted in machine.core.in_turns:
            # That CPU is in the middle of something: the task's turn comes later.
            self.ready.append(task.va)
        else:
            with machine.on_cpu(wanted):
                self._run_here(task)

    def _run_here(self, task: Task) -> None:
        engine, core = self._kernel.machine.engine, self._kernel.machine.core
        outer, outer_task = self._tasks.save(), engine.read("sp_el0")
        assert task.frame is not None
        self._tasks.restore(task.frame)
        engine.write("sp_el0", task.va)
        task.state = TaskState.RUNNING
        self._timers.drop_deadline(task.va)
        self._running.append((task, core.depth))
        try:
            core.run(task.frame.values[-1])
        except Parked:
            task.frame = self._tasks.save()
        except BaseException:
            task.state = TaskState.FAILED
            raise
        else:
            task.result = engine.read("x0")
            task.state = TaskState.DEAD
        finally:
            self._running.pop()
            self._tasks.restore(outer)
            engine.write("sp_el0", outer_task)
        if task.state is TaskState.DEAD:
            self.wake_waiters(task.va)
            ending = _ENDINGS.get(task.kind)
            if ending is not None:
                ending(self._kernel, task)

    # What is left

    def pending(self) -> list[str]:
        """What is still to run, in words: ready and sleeping tasks, armed timers."""
        now = self._kernel.uptime_ns()
        lines = []
        for task in self._tasks.by_va.values():
            if task.state is TaskState.READY:
                lines.append(f"{task.label} is ready")
            elif task.state is TaskState.SLEEPING and task.wait is not None:
                lines.append(f"{task.label} waits for {task.wait.what}")
        return lines + self._timers.describe(now)
