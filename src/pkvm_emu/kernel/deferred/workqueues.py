"""Work queues: items in guest memory, run by worker tasks in the order in which they were queued.

An item that sleeps keeps its worker and lets the next item of the queue run on another one, up to the queue's ``max_active``
items at a time; an ordered queue has one. An item never runs twice at once: queued again while it runs, it follows itself.
Source: kernel/workqueue.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.deferred import layouts as at
from pkvm_emu.kernel.deferred.scheduler import Scheduler, task_ending
from pkvm_emu.kernel.deferred.tasks import Task, Tasks, TaskState
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: ``WQ_UNBOUND``, ``__WQ_ORDERED``, ``__WQ_LEGACY``, and ``WQ_DFL_ACTIVE`` (what 0 as ``max_active`` stands for).
UNBOUND, ORDERED, LEGACY = 1 << 1, 1 << 17, 1 << 18
DEFAULT_ACTIVE, MAX_ACTIVE = 256, 512
_STRUCT = 256
_NAME_LENGTH = 24


class Queue(NamedTuple):
    """A work queue: its name, flags, and how many of its items run at a time; whether it is being destroyed."""

    name: str
    flags: int
    max_active: int
    is_draining: bool = False


class Item(NamedTuple):
    """A queued item: its queue, and the CPU that it is bound to."""

    queue: int
    cpu: int | None


@kernel_part
class Workqueues(State):
    """The work queues and what is on them.

    Attributes:
        queues: by address of the ``struct workqueue_struct``.
        items: queued items that have not begun, by address, in order.
        assigned: those of them that have a worker, which has not got the CPU yet.
        running: items that run, by address: the worker's ``task_struct``.
        idle_workers: workers without work.

    Args:
        kernel: whose work.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.workqueues")
        self._kernel = kernel
        self._scheduler = kernel.part(Scheduler)
        self._tasks = kernel.part(Tasks)
        self.queues: StateDict[int, Queue] = StateDict(journal, "kernel.workqueues.queues")
        self.items: StateDict[int, Item] = StateDict(journal, "kernel.workqueues.items")
        self.assigned: StateDict[int, int] = StateDict(journal, "kernel.workqueues.assigned")
        self.running: StateDict[int, int] = StateDict(journal, "kernel.workqueues.running")
        self.running_queue: StateDict[int, int] = StateDict(journal, "kernel.workqueues.running_queue")
        self.idle_workers: StateList[int] = StateList(journal, "kernel.workqueues.idle_workers")
        self.workers = 0
        #: Functions that ran, and how often: for the report.
        self.ran: StateDict[int, int] = StateDict(journal, "kernel.workqueues.ran")

    # Queues

    def create(self, name: str, flags: int, max_active: int) -> int | None:
        """A new queue; its address, or None without memory."""
        address = self._kernel.part(Slab).kmalloc(_STRUCT)
        if address is not None:
            self._kernel.memory.write(address, bytes(_STRUCT))
            active = 1 if flags & ORDERED else min(max_active or DEFAULT_ACTIVE, MAX_ACTIVE)
            self.queues[address] = Queue(name[: _NAME_LENGTH - 1], flags, active)
        return address

    def change(self, queue: int, max_active: int | None = None, is_draining: bool | None = None) -> None:
        """Another ``max_active``, or beginning and ending to drain."""
        facts = self.queues[queue]
        if max_active is not None:
            facts = facts._replace(max_active=max_active)
        if is_draining is not None:
            facts = facts._replace(is_draining=is_draining)
        self.queues[queue] = facts
        self._dispatch()

    def remove(self, queue: int) -> None:
        """A queue is gone."""
        del self.queues[queue]
        self._kernel.part(Slab).kfree(queue)

    def of(self, queue: int) -> list[int]:
        """The items of a queue that are queued or run."""
        queued = [work for work, item in self.items.items() if item.queue == queue]
        return queued + [work for work, owner in self.running_queue.items() if owner == queue]

    # Items

    def is_pending(self, work: int) -> bool:
        """``work_pending()``: the bit that compiled code looks at."""
        return bool(self._kernel.memory.read_u64(work) & at.WORK_PENDING)

    def set_pending(self, work: int, value: bool) -> None:
        """Set it."""
        word = self._kernel.memory.read_u64(work)
        self._kernel.memory.write_u64(work, word | at.WORK_PENDING if value else word & ~at.WORK_PENDING)

    def add(self, queue: int, work: int, cpu: int | None = None) -> None:
        """Put an item, whose pending bit is set, on a queue."""
        self.items[work] = Item(queue, cpu)
        self._dispatch()

    def take(self, work: int) -> bool:
        """Take a queued item off; whether it was there."""
        if self.items.pop(work, None) is None:
            return False
        # Its worker finds nothing to do.
        self.assigned.pop(work, None)
        self.set_pending(work, False)
        return True

    def is_busy(self, work: int) -> bool:
        """Whether an item is queued or runs."""
        return work in self.items or work in self.running

    def current_item(self) -> int:
        """The item that the current task runs, 0 for none."""
        va = self._tasks.current.va
        return next((work for work, worker in self.running.items() if worker == va), 0)

    def describe(self, work: int) -> str:
        """An item in words: its function and its queue."""
        function = self._kernel.memory.read_u64(work + at.WORK_FUNCTION)
        return f"work {self._kernel.describe(function)}"

    # Workers

    def _dispatch(self) -> None:
        """Give workers to the queued items that may run."""
        active: dict[int, int] = {}
        for queue in (*self.running_queue.values(), *(self.items[work].queue for work in self.assigned)):
            active[queue] = active.get(queue, 0) + 1
        for work, item in list(self.items.items()):
            is_busy = work in self.running or work in self.assigned
            if is_busy or active.get(item.queue, 0) >= self.queues[item.queue].max_active:
                continue
            active[item.queue] = active.get(item.queue, 0) + 1
            self._assign(work, item)

    def _assign(self, work: int, item: Item) -> None:
        worker = self._worker(item.cpu)
        self._tasks.set_entry(worker, self._kernel.symbols.resolve("pkvm_emu.process_one_work"), work)
        worker.cpu = item.cpu
        worker.state = TaskState.CREATED
        self.assigned[work] = worker.va
        self._scheduler.wake(worker)

    def begin(self, work: int) -> int:
        """The current worker begins with its item, which is not pending any more; its function, 0 where it was cancelled."""
        worker = self._tasks.current.va
        if self.assigned.get(work) != worker:
            return 0
        del self.assigned[work]
        item = self.items.pop(work)
        self.running[work] = worker
        self.running_queue[work] = item.queue
        self.set_pending(work, False)
        function = self._kernel.memory.read_u64(work + at.WORK_FUNCTION)
        self.ran[function] = self.ran.get(function, 0) + 1
        return function

    def _worker(self, cpu: int | None) -> Task:
        if self.idle_workers:
            va = self.idle_workers[-1]
            del self.idle_workers[-1]
            return self._tasks.by_va[va]
        name = f"kworker/u{self._kernel.machine.profile.cpus * 2}:{self.workers}"
        self.workers += 1
        return self._tasks.create(name, "worker", 0, 0)

    def finished(self, worker: Task) -> None:
        """A worker's item has returned: the next one may run."""
        work = next((work for work, va in self.running.items() if va == worker.va), 0)
        if work:
            del self.running[work]
            del self.running_queue[work]
        self.idle_workers.append(worker.va)
        worker.cpu = None
        if work:
            self._scheduler.wake_waiters(work)
        self._dispatch()


@task_ending("worker")
def _worker_done(kernel: Kernel, task: Task) -> None:
    kernel.part(Workqueues).finished(task)
