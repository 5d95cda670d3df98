"""Kernel threads: tasks that a module makes, wakes and stops. Source: kernel/kthread.c."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.deferred.scheduler import Scheduler, task_ending
from pkvm_emu.kernel.deferred.tasks import INTERRUPTIBLE, Task, Tasks
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


class Flags(NamedTuple):
    """What a thread has been asked to do, its data, and whether it was ever woken."""

    should_stop: bool = False
    should_park: bool = False
    is_parked: bool = False
    data: int = 0
    was_started: bool = False


@kernel_part
class Kthreads(State):
    """The kernel threads by ``task_struct``.

    Args:
        kernel: whose threads.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.kthreads")
        self._kernel = kernel
        self._tasks = kernel.part(Tasks)
        self._scheduler = kernel.part(Scheduler)
        self.flags: StateDict[int, Flags] = StateDict(kernel.machine.journal, "kernel.kthreads.flags")

    def create(self, name: str, function: int, data: int) -> Task:
        """A thread that begins with its first wake-up."""
        task = self._tasks.create(name, "kthread", function, data)
        self.flags[task.va] = Flags(data=data)
        self._tasks.set_state(task, INTERRUPTIBLE)
        return task

    def of(self, va: int) -> Flags | None:
        """A thread's flags; None for a task that is no kernel thread."""
        return self.flags.get(va)

    def change(self, va: int, **values: bool) -> None:
        """Set some of them."""
        self.flags[va] = self.flags[va]._replace(**values)

    @property
    def current(self) -> Flags:
        """Those of the current task."""
        return self.flags.get(self._tasks.current.va, Flags())

    def forget(self, task: Task) -> None:
        """A thread that nobody asks for any more: its memory goes back."""
        self.flags.pop(task.va, None)
        self._tasks.release(task)


@task_ending("kthread")
def _thread_done(kernel: Kernel, task: Task) -> None:
    threads = kernel.part(Kthreads)
    flags = threads.of(task.va)
    # A thread that is being stopped is looked at once more by who stops it.
    if flags is not None and not flags.should_stop:
        threads.change(task.va, is_parked=False)
