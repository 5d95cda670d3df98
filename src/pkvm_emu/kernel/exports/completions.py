"""Completions (``kernel/sched/completion.c``): {u32 done; swait_queue_head {u32 lock; list} @8}."""

from __future__ import annotations

from pkvm_emu.kernel.deferred.scheduler import FOREVER, NS_PER_JIFFY, Scheduler
from pkvm_emu.kernel.deferred.tasks import Tasks
from pkvm_emu.kernel.guest_access import load_u32, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S64, Ptr

_ALL = 0xFFFF_FFFF


@kernel_symbol("complete", "complete_on_current_cpu", runs_guest=True)
def complete(kernel: Kernel, completion: Ptr) -> None:
    """Let one waiter through."""
    done = load_u32(kernel, completion)
    store_uint(kernel, completion, min(done + 1, _ALL), 4)
    kernel.part(Scheduler).wake_waiters(completion)


@kernel_symbol("complete_all", runs_guest=True)
def complete_all(kernel: Kernel, completion: Ptr) -> None:
    """Let all waiters through, for ever."""
    store_uint(kernel, completion, _ALL, 4)
    kernel.part(Scheduler).wake_waiters(completion)


@kernel_symbol("try_wait_for_completion", runs_guest=True)
def try_wait_for_completion(kernel: Kernel, completion: Ptr) -> int:
    """Whether it was done; takes one."""
    done = load_u32(kernel, completion)
    if done and done != _ALL:
        store_uint(kernel, completion, done - 1, 4)
    return done != 0


@kernel_symbol("completion_done", runs_guest=True)
def completion_done(kernel: Kernel, completion: Ptr) -> int:
    """Whether nobody would have to wait."""
    return load_u32(kernel, completion) != 0


def _wait(kernel: Kernel, completion: int, timeout_ns: int | None) -> bool:
    what = f"completion {kernel.describe(completion)}"
    return kernel.part(Scheduler).wait(what, completion, lambda: load_u32(kernel, completion) != 0, timeout_ns)


@kernel_symbol(
    *("wait_for_completion", "wait_for_completion_io", "wait_for_completion_interruptible"),
    *("wait_for_completion_killable", "wait_for_completion_state"),
    runs_guest=True,
)
def wait_for_completion(kernel: Kernel, completion: Ptr) -> int:
    """Wait until it is done; 0 where the form returns something."""
    _wait(kernel, completion, None)
    try_wait_for_completion(kernel, completion)
    return 0


@kernel_symbol(
    *("wait_for_completion_timeout", "wait_for_completion_io_timeout", "wait_for_completion_interruptible_timeout"),
    "wait_for_completion_killable_timeout",
    runs_guest=True,
)
def wait_for_completion_timeout(kernel: Kernel, completion: Ptr, timeout: S64) -> int:
    """The jiffies that were left (1 at least), or 0 after the time."""
    if timeout == FOREVER:
        wait_for_completion(kernel, completion)
        return timeout
    # A task that has slept meanwhile makes its call again: the deadline is that of the first one.
    earlier = kernel.part(Tasks).current.wait
    end = kernel.uptime_ns() + max(timeout, 0) * NS_PER_JIFFY
    if earlier is not None and earlier.deadline is not None:
        end = earlier.deadline
    if not _wait(kernel, completion, max(timeout, 0) * NS_PER_JIFFY):
        return 0
    try_wait_for_completion(kernel, completion)
    return max((end - kernel.uptime_ns()) // NS_PER_JIFFY, 1)
