"""Wait queues (``kernel/sched/wait.c``): entries in guest memory, whose functions a wake-up calls.

A wait queue head is {u32 lock; list @8}, an entry {u32 flags; private @8; func @16; list @24}.
"""

from __future__ import annotations

import struct

from pkvm_emu.kernel.deferred.scheduler import FOREVER, NS_PER_JIFFY, Scheduler
from pkvm_emu.kernel.deferred.tasks import RUNNING, Tasks
from pkvm_emu.kernel.guest_access import (
    empty_list,
    list_add_tail,
    list_del_init,
    list_nodes,
    load_u32,
    load_u64,
    misuse,
    store,
    store_uint,
)
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, S64, U32, Ptr

_UINT_MAX = 0xFFFF_FFFF
_EXCLUSIVE, _WOKEN = 1, 2
_ENTRY = 24


@kernel_symbol("__init_swait_queue_head", "__init_waitqueue_head", runs_guest=True)
def init_waitqueue_head(kernel: Kernel, queue: Ptr, name: Ptr, key: Ptr) -> None:
    """Make an empty wait queue."""
    store_uint(kernel, queue, 0, 4)
    empty_list(kernel, queue + 8)


@kernel_symbol("init_wait_entry", runs_guest=True)
def init_wait_entry(kernel: Kernel, entry: Ptr, flags: S32) -> None:
    """Make an entry for the current task."""
    wake = kernel.symbols.resolve("autoremove_wake_function")
    store(kernel, entry, struct.pack("<IxxxxQQ", flags & _UINT_MAX, kernel.part(Tasks).current.va, wake))
    empty_list(kernel, entry + _ENTRY)


@kernel_symbol("default_wake_function", runs_guest=True)
def default_wake_function(kernel: Kernel, entry: Ptr, mode: U32, flags: S32, key: Ptr) -> int:
    """Wake the task of an entry: 1 where it slept."""
    task = kernel.part(Tasks).find(load_u64(kernel, entry + 8))
    if task is None:
        raise misuse(kernel, f"wait queue entry {kernel.describe(entry)} has no task")
    return kernel.part(Scheduler).wake(task)


@kernel_symbol("autoremove_wake_function", runs_guest=True)
def autoremove_wake_function(kernel: Kernel, entry: Ptr, mode: U32, flags: S32, key: Ptr) -> int:
    """The same; the entry leaves the queue."""
    woken = default_wake_function(kernel, entry, mode, flags, key)
    if woken:
        list_del_init(kernel, entry + _ENTRY)
    return woken


@kernel_symbol("woken_wake_function", runs_guest=True)
def woken_wake_function(kernel: Kernel, entry: Ptr, mode: U32, flags: S32, key: Ptr) -> int:
    """The same; the entry stays and remembers it (``wait_woken``)."""
    store_uint(kernel, entry, load_u32(kernel, entry) | _WOKEN, 4)
    return default_wake_function(kernel, entry, mode, flags, key)


# Going on a queue and off it


@kernel_symbol("add_wait_queue", runs_guest=True)
def add_wait_queue(kernel: Kernel, queue: Ptr, entry: Ptr) -> None:
    """Put an entry at the front."""
    store_uint(kernel, entry, load_u32(kernel, entry) & ~_EXCLUSIVE, 4)
    list_add_tail(kernel, entry + _ENTRY, load_u64(kernel, queue + 8))


@kernel_symbol("add_wait_queue_exclusive", runs_guest=True)
def add_wait_queue_exclusive(kernel: Kernel, queue: Ptr, entry: Ptr) -> None:
    """Put an entry at the end, to be woken alone."""
    store_uint(kernel, entry, load_u32(kernel, entry) | _EXCLUSIVE, 4)
    list_add_tail(kernel, entry + _ENTRY, queue + 8)


@kernel_symbol("remove_wait_queue", runs_guest=True)
def remove_wait_queue(kernel: Kernel, queue: Ptr, entry: Ptr) -> None:
    """Take an entry off."""
    list_del_init(kernel, entry + _ENTRY)


def _prepare(kernel: Kernel, queue: int, entry: int, state: int, is_exclusive: bool) -> None:
    if load_u64(kernel, entry + _ENTRY) == entry + _ENTRY:
        (add_wait_queue_exclusive if is_exclusive else add_wait_queue)(kernel, queue, entry)
    tasks = kernel.part(Tasks)
    tasks.current.queue = queue
    tasks.set_state(tasks.current, state)


@kernel_symbol("prepare_to_wait", runs_guest=True)
def prepare_to_wait(kernel: Kernel, queue: Ptr, entry: Ptr, state: S32) -> None:
    """Put the task on a queue, once, and set its state."""
    _prepare(kernel, queue, entry, state, False)


@kernel_symbol("prepare_to_wait_exclusive", runs_guest=True)
def prepare_to_wait_exclusive(kernel: Kernel, queue: Ptr, entry: Ptr, state: S32) -> int:
    """The same at the end; whether the queue was empty."""
    was_empty = load_u64(kernel, queue + 8) == queue + 8
    _prepare(kernel, queue, entry, state, True)
    return was_empty


@kernel_symbol("prepare_to_wait_event", runs_guest=True)
def prepare_to_wait_event(kernel: Kernel, queue: Ptr, entry: Ptr, state: S32) -> int:
    """Put the task on a queue, once, and set its state; 0: no signal."""
    _prepare(kernel, queue, entry, state, bool(load_u32(kernel, entry) & _EXCLUSIVE))
    return 0


@kernel_symbol("finish_wait", runs_guest=True)
def finish_wait(kernel: Kernel, queue: Ptr, entry: Ptr) -> None:
    """Take the task off; it runs."""
    tasks = kernel.part(Tasks)
    tasks.current.queue = 0
    tasks.set_state(tasks.current, RUNNING)
    if load_u64(kernel, entry + _ENTRY) != entry + _ENTRY:
        list_del_init(kernel, entry + _ENTRY)


@kernel_symbol("wait_woken", runs_guest=True)
def wait_woken(kernel: Kernel, entry: Ptr, mode: U32, timeout: S64) -> int:
    """Sleep until the entry's function was called, or for jiffies; what is left of them."""
    scheduler, tasks = kernel.part(Scheduler), kernel.part(Tasks)
    before = _left(kernel, timeout)
    if not load_u32(kernel, entry) & _WOKEN:
        limit = None if timeout == FOREVER else timeout * NS_PER_JIFFY
        what = f"a wake-up of its wait queue entry {kernel.describe(entry)}"
        scheduler.wait(what, 0, lambda: bool(load_u32(kernel, entry) & _WOKEN), limit)
    tasks.set_state(tasks.current, RUNNING)
    store_uint(kernel, entry, load_u32(kernel, entry) & ~_WOKEN, 4)
    return timeout if timeout == FOREVER else before


def _left(kernel: Kernel, timeout: int) -> int:
    """Jiffies left of a wait that begins now, or that the current task is in."""
    wait = kernel.part(Tasks).current.wait
    if wait is None or wait.deadline is None:
        return timeout
    return max(-(-(wait.deadline - kernel.uptime_ns()) // NS_PER_JIFFY), 0)


# Waking


def _wake(kernel: Kernel, queue: int, mode: int, count: int, key: int) -> int:
    """Call the entries' functions: all of those that are not exclusive, ``count`` of the others (0: all)."""
    woken = 0
    for node in list_nodes(kernel, queue + 8):
        entry = node - _ENTRY
        flags = load_u32(kernel, entry)
        result = kernel.call_s32(load_u64(kernel, entry + 16), entry, mode, 0, key)
        if result < 0:
            break
        if result:
            woken += 1
            if flags & _EXCLUSIVE and count:
                count -= 1
                if not count:
                    break
    return woken


@kernel_symbol("__wake_up", runs_guest=True)
def wake_up(kernel: Kernel, queue: Ptr, mode: U32, count: S32, key: Ptr) -> int:
    """Wake the tasks of a queue: all, but ``count`` of the exclusive ones where it is not 0."""
    return _wake(kernel, queue, mode, count, key)


@kernel_symbol("__wake_up_sync_key", "__wake_up_locked_key", "__wake_up_locked_sync_key", runs_guest=True)
def wake_up_sync_key(kernel: Kernel, queue: Ptr, mode: U32, key: Ptr) -> int:
    """Wake one exclusive task of a queue and all others."""
    return _wake(kernel, queue, mode, 1, key)


@kernel_symbol("__wake_up_sync", runs_guest=True)
def wake_up_sync(kernel: Kernel, queue: Ptr, mode: U32) -> int:
    """The same without a key."""
    return _wake(kernel, queue, mode, 1, 0)


@kernel_symbol("__wake_up_locked", runs_guest=True)
def wake_up_locked(kernel: Kernel, queue: Ptr, mode: U32, count: S32) -> int:
    """The same by who holds the queue's lock."""
    return _wake(kernel, queue, mode, count, 0)


@kernel_symbol("wake_up_process", runs_guest=True)
def wake_up_process(kernel: Kernel, task: Ptr) -> int:
    """Wake a task: 1 where it slept or was never started."""
    found = kernel.part(Tasks).find(task)
    if found is None:
        raise misuse(kernel, f"wake_up_process({task:#x}): there is no such task")
    return kernel.part(Scheduler).wake(found)


@kernel_symbol("wake_up_state", runs_guest=True)
def wake_up_state(kernel: Kernel, task: Ptr, state: U32) -> int:
    """Wake a task that is in one of some states."""
    found = kernel.part(Tasks).find(task)
    if found is None:
        raise misuse(kernel, f"wake_up_state({task:#x}): there is no such task")
    if not kernel.part(Tasks).state_of(found) & state:
        return 0
    return kernel.part(Scheduler).wake(found)
