"""Work queues (``kernel/workqueue.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.deferred import layouts as at
from pkvm_emu.kernel.deferred.layouts import deferred_layout
from pkvm_emu.kernel.deferred.scheduler import Scheduler
from pkvm_emu.kernel.deferred.tasks import Tasks
from pkvm_emu.kernel.deferred.workqueues import LEGACY, ORDERED, UNBOUND, Workqueues
from pkvm_emu.kernel.exports.timers import arm_timer, disarm_timer
from pkvm_emu.kernel.guest_access import load_u32, load_u64, misuse, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.kernel.time import Clock
from pkvm_emu.machine.calling import S32, U32, U64, Ptr, VarArgs
from pkvm_emu.machine.core import Stuck

_PLACE = "kernel/workqueue.c"
_BUSY_PENDING, _BUSY_RUNNING = 1, 2

# The kernel's own queues


for _name, _flags in (
    ("events", 0),
    ("events_highpri", 1 << 4),
    ("events_long", 0),
    ("events_unbound", UNBOUND),
    ("events_freezable", 1 << 2),
    ("events_power_efficient", UNBOUND),
    ("events_freezable_pwr_efficient", UNBOUND | 1 << 2),
    ("events_bh", 1 << 0),
    ("events_bh_highpri", 1 << 0 | 1 << 4),
):
    _variable = _name.replace("events", "system").replace("pwr_efficient", "power_efficient") + "_wq"

    def _pointer(kernel: Kernel, name: str = _name, flags: int = _flags) -> bytes:
        """Pointer to one of the kernel's own queues."""
        return (kernel.part(Workqueues).create(name, flags, 0) or 0).to_bytes(8, "little")

    kernel_variable(_variable, 8)(_pointer)


# Making and removing


@kernel_symbol("alloc_workqueue", "alloc_workqueue_noprof", runs_guest=True)
def alloc_workqueue(kernel: Kernel, fmt: Ptr, flags: U32, max_active: S32, arguments: VarArgs) -> int:
    """A queue; NULL without memory."""
    name = kernel.format(kernel.read_cstr(fmt), arguments)
    return kernel.part(Workqueues).create(name, flags, max_active) or 0


def _known(kernel: Kernel, queue: int, function: str) -> Workqueues:
    queues = kernel.part(Workqueues)
    if queue not in queues.queues:
        raise misuse(kernel, f"{function}({queue:#x}): there is no such work queue")
    return queues


@kernel_symbol("destroy_workqueue", runs_guest=True)
def destroy_workqueue(kernel: Kernel, queue: Ptr) -> None:
    """Let everything on a queue run, and remove it."""
    queues = _known(kernel, queue, "destroy_workqueue")
    drain_workqueue(kernel, queue)
    queues.remove(queue)


@kernel_symbol("workqueue_set_max_active", "workqueue_set_min_active", runs_guest=True)
def workqueue_set_max_active(kernel: Kernel, queue: Ptr, max_active: S32) -> None:
    """How many items run at a time; an ordered queue warns."""
    queues = _known(kernel, queue, "workqueue_set_max_active")
    if queues.queues[queue].flags & ORDERED and not queues.queues[queue].flags & LEGACY:
        warn(kernel, _PLACE)
        return
    queues.change(queue, max_active=max(max_active, 1))


# Queueing


def queue_work(kernel: Kernel, cpu: int, queue: int, work: int) -> bool:
    """Put an item on a queue; False where it is pending already."""
    queues = _known(kernel, queue, "queue_work")
    if queues.is_pending(work):
        return False
    facts = queues.queues[queue]
    # While a queue drains only its own items may add to it.
    if facts.is_draining and queues.running_queue.get(queues.current_item()) != queue:
        warn(kernel, _PLACE, f"workqueue: cannot queue {queues.describe(work)} on wq {facts.name}")
        return False
    queues.set_pending(work, True)
    bound = cpu if cpu < kernel.machine.profile.cpus and not facts.flags & UNBOUND else None
    queues.add(queue, work, bound)
    return True


@kernel_symbol("queue_work_on", "queue_work_node", runs_guest=True)
def queue_work_on(kernel: Kernel, cpu: U32, queue: Ptr, work: Ptr) -> int:
    """Put an item on a queue; whether it was not pending. CPU numbers that there are not mean any."""
    return queue_work(kernel, cpu, queue, work)


@kernel_symbol("pkvm_emu.process_one_work", runs_guest=True)
def process_one_work(kernel: Kernel, work: Ptr) -> None:
    """What a worker begins with: it goes on to its item's function, whose return is the worker's."""
    function = kernel.part(Workqueues).begin(work)
    if function:
        kernel.machine.engine.write("pc", function)


@kernel_symbol("queue_delayed_work_on", runs_guest=True)
def queue_delayed_work_on(kernel: Kernel, cpu: U32, queue: Ptr, work: Ptr, delay: U64) -> int:
    """Put an item on a queue after jiffies; whether it was not pending."""
    queues = _known(kernel, queue, "queue_delayed_work")
    if queues.is_pending(work):
        return False
    if not delay:
        return queue_work(kernel, cpu, queue, work)
    layout = deferred_layout(kernel.generation.kernel)
    if load_u64(kernel, work + layout.timer + at.TIMER_FUNCTION) != kernel.symbols.resolve("delayed_work_timer_fn"):
        warn(kernel, _PLACE)
    queues.set_pending(work, True)
    store_uint(kernel, work + layout.queue, queue, 8)
    store_uint(kernel, work + layout.cpu, cpu, 4)
    arm_timer(kernel, work + layout.timer, kernel.part(Clock).jiffies + delay)
    return True


@kernel_symbol("mod_delayed_work_on", runs_guest=True)
def mod_delayed_work_on(kernel: Kernel, cpu: U32, queue: Ptr, work: Ptr, delay: U64) -> int:
    """Queue an item after jiffies, or move it where it is pending; whether it was."""
    was_pending = _cancel_delayed(kernel, work)
    queue_delayed_work_on(kernel, cpu, queue, work, delay)
    return was_pending


@kernel_symbol("delayed_work_timer_fn", runs_guest=True)
def delayed_work_timer_fn(kernel: Kernel, timer: Ptr) -> None:
    """The timer of a delayed item: put it on its queue."""
    layout = deferred_layout(kernel.generation.kernel)
    work = timer - layout.timer
    queue, cpu = load_u64(kernel, work + layout.queue), load_u32(kernel, work + layout.cpu)
    kernel.part(Workqueues).set_pending(work, False)
    queue_work(kernel, cpu, queue, work)


@kernel_symbol("schedule_on_each_cpu", runs_guest=True)
def schedule_on_each_cpu(kernel: Kernel, function: Ptr) -> int:
    """Run a function in a work item on every CPU that is online, and wait for all."""
    here = kernel.machine.current.index
    for cpu in kernel.machine.cpus:
        if kernel.part(Smp).is_online(cpu.index):
            if cpu.index == here:
                kernel.call(function, 0)
            else:
                kernel.part(Smp).call_on(cpu.index, function, 0)
    return 0


# Waiting and cancelling


def _wait_until_done(kernel: Kernel, work: int, function: str) -> bool:
    """Wait for an item that is queued or runs; whether there was anything to wait for."""
    queues, scheduler = kernel.part(Workqueues), kernel.part(Scheduler)
    has_waited = scheduler.has_slept
    if not queues.is_busy(work):
        scheduler.end_wait()
        return has_waited
    if queues.current_item() == work:
        raise Stuck(f"{function}() is called by {queues.describe(work)} for itself: it would wait for its own end")
    scheduler.wait(queues.describe(work), work, lambda: not queues.is_busy(work))
    return True


@kernel_symbol("flush_work", runs_guest=True)
def flush_work(kernel: Kernel, work: Ptr) -> int:
    """Wait until an item has run; False where it was idle."""
    return _wait_until_done(kernel, work, "flush_work")


@kernel_symbol("flush_delayed_work", runs_guest=True)
def flush_delayed_work(kernel: Kernel, work: Ptr) -> int:
    """Queue a delayed item at once where its time has not come, and wait until it has run."""
    layout = deferred_layout(kernel.generation.kernel)
    if disarm_timer(kernel, work + layout.timer):
        delayed_work_timer_fn(kernel, work + layout.timer)
    return _wait_until_done(kernel, work, "flush_delayed_work")


@kernel_symbol("cancel_work", runs_guest=True)
def cancel_work(kernel: Kernel, work: Ptr) -> int:
    """Take an item off its queue; whether it was pending."""
    return kernel.part(Workqueues).take(work)


def _cancel_sync(kernel: Kernel, work: int, was_pending: bool, function: str) -> bool:
    """Wait for an item that runs. The answer is that of the first call, where a task sleeps in it and makes it again."""
    task = kernel.part(Tasks).current
    if not kernel.part(Scheduler).has_slept:
        task.note = was_pending
    _wait_until_done(kernel, work, function)
    return bool(task.note)


@kernel_symbol("cancel_work_sync", runs_guest=True)
def cancel_work_sync(kernel: Kernel, work: Ptr) -> int:
    """Take an item off its queue and wait until it does not run; whether it was pending."""
    return _cancel_sync(kernel, work, cancel_work(kernel, work) != 0, "cancel_work_sync")


def _cancel_delayed(kernel: Kernel, work: int) -> bool:
    layout = deferred_layout(kernel.generation.kernel)
    if disarm_timer(kernel, work + layout.timer):
        kernel.part(Workqueues).set_pending(work, False)
        return True
    return kernel.part(Workqueues).take(work)


@kernel_symbol("cancel_delayed_work", runs_guest=True)
def cancel_delayed_work(kernel: Kernel, work: Ptr) -> int:
    """Stop a delayed item that has not begun; whether it was pending."""
    return _cancel_delayed(kernel, work)


@kernel_symbol("cancel_delayed_work_sync", runs_guest=True)
def cancel_delayed_work_sync(kernel: Kernel, work: Ptr) -> int:
    """The same, and wait until it does not run."""
    return _cancel_sync(kernel, work, _cancel_delayed(kernel, work), "cancel_delayed_work_sync")


@kernel_symbol("__flush_workqueue", "flush_workqueue", runs_guest=True)
def flush_workqueue(kernel: Kernel, queue: Ptr) -> None:
    """Wait until everything on a queue has run."""
    queues = _known(kernel, queue, "flush_workqueue")
    if queues.running_queue.get(queues.current_item()) == queue:
        raise Stuck(
            f"flush_workqueue({queues.queues[queue].name}) is called by {queues.describe(queues.current_item())}, which is "
            f"on that queue: it would wait for its own end"
        )
    what = f"everything on the work queue {queues.queues[queue].name}"
    kernel.part(Scheduler).wait(what, 0, lambda: not queues.of(queue))


@kernel_symbol("drain_workqueue", runs_guest=True)
def drain_workqueue(kernel: Kernel, queue: Ptr) -> None:
    """The same, also for what the items queue themselves; others may not queue anything meanwhile."""
    queues = _known(kernel, queue, "drain_workqueue")
    queues.change(queue, is_draining=True)
    flush_workqueue(kernel, queue)
    queues.change(queue, is_draining=False)


@kernel_symbol("work_busy", runs_guest=True)
def work_busy(kernel: Kernel, work: Ptr) -> int:
    """Bit 0: pending, bit 1: it runs."""
    queues = kernel.part(Workqueues)
    return (_BUSY_PENDING if queues.is_pending(work) else 0) | (_BUSY_RUNNING if work in queues.running else 0)


@kernel_symbol("current_work")
def current_work(kernel: Kernel) -> int:
    """The item that the current task runs, or NULL."""
    return kernel.part(Workqueues).current_item()


@kernel_symbol("workqueue_congested")
def workqueue_congested(kernel: Kernel, cpu: S32, queue: Ptr) -> int:
    """Whether items of a queue wait for others of it."""
    queues = kernel.part(Workqueues)
    return any(item.queue == queue for item in queues.items.values())


@kernel_symbol("__init_work", "destroy_work_on_stack", "destroy_delayed_work_on_stack")
def init_work(kernel: Kernel, work: Ptr, on_stack: S32) -> None:
    """Book-keeping of debug builds."""
