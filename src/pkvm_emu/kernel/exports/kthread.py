"""Kernel threads and their workers (``kernel/kthread.c``).

``struct kthread_worker`` is {u32 flags; u32 lock; work_list @8; delayed_work_list @24; task @40; current_work @48}, ``struct
kthread_work`` {node @0; func @16; worker @24; int canceling @32}, ``struct kthread_delayed_work`` {work @0; timer @40}.
"""

from __future__ import annotations

from errno import EINTR, EINVAL, ENOMEM, ENOSYS

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.deferred import layouts as at
from pkvm_emu.kernel.deferred.kthreads import Kthreads
from pkvm_emu.kernel.deferred.scheduler import Scheduler
from pkvm_emu.kernel.deferred.tasks import INTERRUPTIBLE, RUNNING, Task, Tasks, TaskState
from pkvm_emu.kernel.exports.timers import arm_timer, disarm_timer
from pkvm_emu.kernel.guest_access import (
    empty_list,
    list_add_tail,
    list_del_init,
    load_u32,
    load_u64,
    misuse,
    store,
    store_uint,
)
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.time import Clock
from pkvm_emu.machine.calling import S32, U32, U64, Ptr, VarArgs

_WORK_LIST, _TASK, _CURRENT_WORK, _WORKER_SIZE = 8, 40, 48, 56
_FUNCTION, _WORKER, _CANCELING, _DELAYED_TIMER = 16, 24, 32, 40
_PLACE = "kernel/kthread.c"


def _find(kernel: Kernel, task: int, function: str) -> Task:
    found = kernel.part(Tasks).find(task)
    if found is None or kernel.part(Kthreads).of(task) is None:
        raise misuse(kernel, f"{function}({task:#x}): there is no such kernel thread")
    return found


def _create(kernel: Kernel, name: str, function: int, data: int, cpu: int | None = None) -> int:
    try:
        task = kernel.part(Kthreads).create(name, function, data)
    except ModuleError:
        return -ENOMEM
    task.cpu = cpu
    return task.va


@kernel_symbol("kthread_create_on_node", runs_guest=True)
def kthread_create_on_node(kernel: Kernel, function: Ptr, data: Ptr, node: S32, fmt: Ptr, arguments: VarArgs) -> int:
    """A thread that begins with its first wake-up; -ENOMEM without memory."""
    return _create(kernel, kernel.format(kernel.read_cstr(fmt), arguments), function, data)


@kernel_symbol("kthread_create_on_cpu", runs_guest=True)
def kthread_create_on_cpu(kernel: Kernel, function: Ptr, data: Ptr, cpu: U32, fmt: Ptr) -> int:
    """The same, bound to a CPU, whose number is the format's one argument."""
    name = kernel.read_cstr(fmt).decode("latin-1").replace("%u", str(cpu)).replace("%d", str(cpu))
    return _create(kernel, name, function, data, cpu)


@kernel_symbol("kthread_bind", runs_guest=True)
def kthread_bind(kernel: Kernel, task: Ptr, cpu: U32) -> None:
    """Bind a thread that has not begun to a CPU."""
    _find(kernel, task, "kthread_bind").cpu = cpu


@kernel_symbol("kthread_bind_mask", "set_cpus_allowed_ptr", runs_guest=True)
def kthread_bind_mask(kernel: Kernel, task: Ptr, mask: Ptr) -> int:
    """Bind a task to the first CPU of a mask, unless the mask is all of them; -EINVAL for an empty one."""
    wanted = load_u64(kernel, mask) & (1 << kernel.machine.profile.cpus) - 1
    found = kernel.part(Tasks).find(task)
    if not wanted or found is None:
        return -EINVAL
    if wanted.bit_count() < kernel.machine.profile.cpus and found.kind != "cpu":
        found.cpu = (wanted & -wanted).bit_length() - 1
    return 0


@kernel_symbol("kthread_should_stop")
def kthread_should_stop(kernel: Kernel) -> int:
    """Whether somebody wants the current thread to end."""
    return kernel.part(Kthreads).current.should_stop


@kernel_symbol("kthread_should_park")
def kthread_should_park(kernel: Kernel) -> int:
    """Whether somebody wants the current thread to park."""
    return kernel.part(Kthreads).current.should_park


@kernel_symbol("kthread_freezable_should_stop", runs_guest=True)
def kthread_freezable_should_stop(kernel: Kernel, was_frozen: Ptr) -> int:
    """The same as ``kthread_should_stop``; nothing is frozen."""
    if was_frozen:
        store_uint(kernel, was_frozen, 0, 1)
    return kernel.part(Kthreads).current.should_stop


@kernel_symbol("kthread_data", "kthread_probe_data")
def kthread_data(kernel: Kernel, task: Ptr) -> int:
    """What a thread was given."""
    flags = kernel.part(Kthreads).of(task)
    return flags.data if flags is not None else 0


@kernel_symbol("kthread_func")
def kthread_func(kernel: Kernel, task: Ptr) -> int:
    """Function of a thread that has not begun."""
    frame = _find(kernel, task, "kthread_func").frame
    return frame.values[-1] if frame is not None else 0


@kernel_symbol("kthread_stop", "kthread_stop_put", runs_guest=True)
def kthread_stop(kernel: Kernel, task: Ptr) -> int:
    """Ask a thread to end and wait for it: what its function returned, -EINTR for one that never began."""
    thread = _find(kernel, task, "kthread_stop")
    threads, scheduler = kernel.part(Kthreads), kernel.part(Scheduler)
    if thread.state is TaskState.CREATED:
        threads.forget(thread)
        return -EINTR
    if not scheduler.has_slept:
        threads.change(task, should_stop=True, should_park=False)
        scheduler.wake(thread)
    scheduler.wait(f"the end of the thread {thread.label}", task, lambda: thread.state is TaskState.DEAD)
    threads.forget(thread)
    return thread.result


@kernel_symbol("kthread_park", runs_guest=True)
def kthread_park(kernel: Kernel, task: Ptr) -> int:
    """Ask a thread to park and wait until it does: 0, -ENOSYS for one that has ended."""
    thread = _find(kernel, task, "kthread_park")
    threads, scheduler = kernel.part(Kthreads), kernel.part(Scheduler)
    if thread.state is TaskState.DEAD:
        return -ENOSYS
    if not scheduler.has_slept:
        threads.change(task, should_park=True)
        scheduler.wake(thread)
    what = f"the thread {thread.label} to park"

    def is_parked() -> bool:
        flags = threads.of(task)
        return flags is None or flags.is_parked

    scheduler.wait(what, task, is_parked)
    return 0


@kernel_symbol("kthread_unpark", runs_guest=True)
def kthread_unpark(kernel: Kernel, task: Ptr) -> None:
    """Let a parked thread go on."""
    thread = _find(kernel, task, "kthread_unpark")
    kernel.part(Kthreads).change(task, should_park=False, is_parked=False)
    kernel.part(Scheduler).wake(thread)


@kernel_symbol("kthread_parkme", runs_guest=True)
def kthread_parkme(kernel: Kernel) -> None:
    """The current thread parks until ``kthread_unpark``."""
    threads, scheduler = kernel.part(Kthreads), kernel.part(Scheduler)
    task = kernel.part(Tasks).current
    if kernel.part(Kthreads).current.should_park:
        threads.change(task.va, is_parked=True)
        scheduler.wake_waiters(task.va)
        kernel.part(Tasks).set_state(task, INTERRUPTIBLE)
    scheduler.wait("kthread_unpark()", 0, lambda: not threads.current.should_park)
    kernel.part(Tasks).set_state(task, RUNNING)


# Workers


@kernel_symbol("__kthread_init_worker", runs_guest=True)
def kthread_init_worker(kernel: Kernel, worker: Ptr, name: Ptr, key: Ptr) -> None:
    """Make a worker without a thread."""
    store(kernel, worker, bytes(_WORKER_SIZE))
    empty_list(kernel, worker + _WORK_LIST)
    empty_list(kernel, worker + 24)


def _create_worker(kernel: Kernel, name: str, cpu: int | None) -> int:
    worker = kernel.part(Slab).kmalloc(_WORKER_SIZE)
    if worker is None:
        return -ENOMEM
    kthread_init_worker(kernel, worker, 0, 0)
    task = _create(kernel, name, kernel.symbols.resolve("kthread_worker_fn"), worker, cpu)
    if task < 0:
        kernel.part(Slab).kfree(worker)
        return task
    store_uint(kernel, worker + _TASK, task, 8)
    kernel.part(Scheduler).wake(_find(kernel, task, "kthread_create_worker"))
    return worker


@kernel_symbol("kthread_create_worker", runs_guest=True)
def kthread_create_worker(kernel: Kernel, flags: U32, fmt: Ptr, arguments: VarArgs) -> int:
    """A worker with its thread, which runs; -ENOMEM without memory."""
    return _create_worker(kernel, kernel.format(kernel.read_cstr(fmt), arguments), None)


@kernel_symbol("kthread_create_worker_on_cpu", runs_guest=True)
def kthread_create_worker_on_cpu(kernel: Kernel, cpu: S32, flags: U32, fmt: Ptr, arguments: VarArgs) -> int:
    """The same on a CPU."""
    return _create_worker(kernel, kernel.format(kernel.read_cstr(fmt), arguments), cpu)


@kernel_symbol("kthread_worker_fn", runs_guest=True)
def kthread_worker_fn(kernel: Kernel, worker: Ptr) -> int | None:
    """What a worker's thread does: one work after the other, until it is stopped.

    Each work's function is gone on to with this function as its return address, so no Python waits for it.
    """
    engine, task = kernel.machine.engine, kernel.part(Tasks).current
    if not task.continuation:
        task.continuation, task.carried = engine.read("x30"), worker
        store_uint(kernel, worker + _TASK, task.va, 8)
    worker = task.carried
    engine.write("x30", task.continuation)
    done = load_u64(kernel, worker + _CURRENT_WORK)
    if done:
        store_uint(kernel, worker + _CURRENT_WORK, 0, 8)
        kernel.part(Scheduler).wake_waiters(done)
    head = worker + _WORK_LIST
    if kernel.part(Kthreads).current.should_stop:
        kernel.part(Scheduler).end_wait()
        store_uint(kernel, worker + _TASK, 0, 8)
        task.continuation = 0
        return 0
    stopping = kernel.part(Kthreads)
    kernel.part(Scheduler).wait(
        "work for it", worker, lambda: load_u64(kernel, head) != head or stopping.current.should_stop
    )
    if load_u64(kernel, head) == head:
        return kthread_worker_fn(kernel, worker)
    work = load_u64(kernel, head)
    list_del_init(kernel, work)
    store_uint(kernel, worker + _CURRENT_WORK, work, 8)
    engine.write("x30", kernel.symbols.resolve("kthread_worker_fn"))
    engine.write("x0", work)
    engine.write("pc", load_u64(kernel, work + _FUNCTION))
    return None


def _insert(kernel: Kernel, worker: int, work: int) -> None:
    list_add_tail(kernel, work, worker + _WORK_LIST)
    store_uint(kernel, work + _WORKER, worker, 8)
    task = load_u64(kernel, worker + _TASK)
    if task:
        kernel.part(Scheduler).wake(_find(kernel, task, "kthread_queue_work"))


def _is_free(kernel: Kernel, work: int) -> bool:
    return load_u64(kernel, work) == work and not load_u32(kernel, work + _CANCELING)


@kernel_symbol("kthread_queue_work", runs_guest=True)
def kthread_queue_work(kernel: Kernel, worker: Ptr, work: Ptr) -> int:
    """Give a worker something to do; False where the work is queued already."""
    if not _is_free(kernel, work):
        return False
    _insert(kernel, worker, work)
    return True


@kernel_symbol("kthread_queue_delayed_work", runs_guest=True)
def kthread_queue_delayed_work(kernel: Kernel, worker: Ptr, work: Ptr, delay: U64) -> int:
    """The same after jiffies."""
    if not _is_free(kernel, work) or load_u64(kernel, work + _DELAYED_TIMER + at.TIMER_PPREV):
        return False
    if not delay:
        _insert(kernel, worker, work)
        return True
    store_uint(kernel, work + _WORKER, worker, 8)
    arm_timer(kernel, work + _DELAYED_TIMER, kernel.part(Clock).jiffies + delay)
    return True


@kernel_symbol("kthread_mod_delayed_work", runs_guest=True)
def kthread_mod_delayed_work(kernel: Kernel, worker: Ptr, work: Ptr, delay: U64) -> int:
    """Queue a work after jiffies, or move it; whether it was pending."""
    was_pending = disarm_timer(kernel, work + _DELAYED_TIMER)
    if load_u64(kernel, work) != work:
        list_del_init(kernel, work)
        was_pending = True
    kthread_queue_delayed_work(kernel, worker, work, delay)
    return was_pending


@kernel_symbol("kthread_delayed_work_timer_fn", runs_guest=True)
def kthread_delayed_work_timer_fn(kernel: Kernel, timer: Ptr) -> None:
    """The timer of a delayed work: give it to its worker."""
    work = timer - _DELAYED_TIMER
    worker = load_u64(kernel, work + _WORKER)
    if not worker:
        warn(kernel, _PLACE)
        return
    _insert(kernel, worker, work)


def _is_done(kernel: Kernel, worker: int, work: int) -> bool:
    return load_u64(kernel, work) == work and load_u64(kernel, worker + _CURRENT_WORK) != work


@kernel_symbol("kthread_flush_work", runs_guest=True)
def kthread_flush_work(kernel: Kernel, work: Ptr) -> None:
    """Wait until a work has run."""
    worker = load_u64(kernel, work + _WORKER)
    if worker:
        what = f"work {kernel.describe(load_u64(kernel, work + _FUNCTION))}"
        kernel.part(Scheduler).wait(what, work, lambda: _is_done(kernel, worker, work))


@kernel_symbol("kthread_flush_worker", runs_guest=True)
def kthread_flush_worker(kernel: Kernel, worker: Ptr) -> None:
    """Wait until a worker has nothing to do."""
    head = worker + _WORK_LIST

    def is_idle() -> bool:
        return load_u64(kernel, head) == head and not load_u64(kernel, worker + _CURRENT_WORK)

    kernel.part(Scheduler).wait(f"worker {kernel.describe(worker)}", 0, is_idle)


@kernel_symbol("kthread_cancel_work_sync", runs_guest=True)
def kthread_cancel_work_sync(kernel: Kernel, work: Ptr) -> int:
    """Take a work off its worker and wait until it does not run; whether it was pending."""
    task, scheduler = kernel.part(Tasks).current, kernel.part(Scheduler)
    if not scheduler.has_slept:
        task.note = load_u64(kernel, work) != work
        if task.note:
            list_del_init(kernel, work)
    kthread_flush_work(kernel, work)
    return task.note


@kernel_symbol("kthread_cancel_delayed_work_sync", runs_guest=True)
def kthread_cancel_delayed_work_sync(kernel: Kernel, work: Ptr) -> int:
    """The same for a delayed one."""
    if disarm_timer(kernel, work + _DELAYED_TIMER):
        return True
    return kthread_cancel_work_sync(kernel, work)


@kernel_symbol("kthread_destroy_worker", runs_guest=True)
def kthread_destroy_worker(kernel: Kernel, worker: Ptr) -> None:
    """Let a worker finish, stop its thread, free it."""
    task = load_u64(kernel, worker + _TASK)
    if not task and not kernel.part(Scheduler).has_slept:
        warn(kernel, _PLACE)
        return
    kthread_flush_worker(kernel, worker)
    if task:
        kthread_stop(kernel, task)
    kernel.part(Slab).kfree(worker)
