"""Completions and wait queues (``kernel/sched``)."""

from __future__ import annotations

import struct

from pkvm_emu.kernel.exports.locks import empty_list
from pkvm_emu.kernel.guest_access import load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.kernel.time import HZ, NS_PER_SECOND, Clock
from pkvm_emu.machine.calling import S32, S64, U32, Ptr

_UINT_MAX = 0xFFFF_FFFF

# Completions: {u32 done; swait_queue_head {u32 lock; list} @8}


@kernel_symbol("__init_swait_queue_head", "__init_waitqueue_head", runs_guest=True)
def init_waitqueue_head(kernel: Kernel, queue: Ptr, name: Ptr, key: Ptr) -> None:
    """Make an empty wait queue."""
    store_uint(kernel, queue, 0, 4)
    empty_list(kernel, queue + 8)


@kernel_symbol("complete", runs_guest=True)
def complete(kernel: Kernel, completion: Ptr) -> None:
    """Let one waiter through."""
    done = load_u32(kernel, completion)
    store_uint(kernel, completion, min(done + 1, _UINT_MAX), 4)


@kernel_symbol("complete_all", runs_guest=True)
def complete_all(kernel: Kernel, completion: Ptr) -> None:
    """Let all waiters through, for ever."""
    store_uint(kernel, completion, _UINT_MAX, 4)


@kernel_symbol("try_wait_for_completion", runs_guest=True)
def try_wait_for_completion(kernel: Kernel, completion: Ptr) -> int:
    """Whether it was done; takes one."""
    done = load_u32(kernel, completion)
    if done and done != _UINT_MAX:
        store_uint(kernel, completion, done - 1, 4)
    return done != 0


@kernel_symbol("completion_done", runs_guest=True)
def completion_done(kernel: Kernel, completion: Ptr) -> int:
    """Whether nobody would have to wait."""
    return load_u32(kernel, completion) != 0


@kernel_symbol(
    *("wait_for_completion", "wait_for_completion_io", "wait_for_completion_interruptible"),
    *("wait_for_completion_killable", "wait_for_completion_state"),
    runs_guest=True,
)
def wait_for_completion(kernel: Kernel, completion: Ptr) -> int:
    """Wait until it is done; 0 where the form returns something."""
    kernel.part(Locks).may_sleep()
    if not try_wait_for_completion(kernel, completion):
        raise kernel.part(Locks).wait(f"completion {kernel.describe(completion)} is not done", completion)
    kernel.part(Locks).done_waiting()
    return 0


@kernel_symbol(
    *("wait_for_completion_timeout", "wait_for_completion_io_timeout", "wait_for_completion_interruptible_timeout"),
    "wait_for_completion_killable_timeout",
    runs_guest=True,
)
def wait_for_completion_timeout(kernel: Kernel, completion: Ptr, timeout: S64) -> int:
    """The jiffies that were left (1 at least), or 0 after the time."""
    kernel.part(Locks).may_sleep()
    if try_wait_for_completion(kernel, completion):
        return max(timeout, 1)
    kernel.part(Clock).advance(max(timeout, 0) * (NS_PER_SECOND // HZ))
    return 0


# Wait queues: {u32 lock; list @8}; entry {u32 flags; private @8; func @16; list @24}


@kernel_symbol("init_wait_entry", runs_guest=True)
def init_wait_entry(kernel: Kernel, entry: Ptr, flags: S32) -> None:
    """Make an entry for the current task."""
    wake = kernel.symbols.resolve("autoremove_wake_function")
    store(kernel, entry, struct.pack("<IxxxxQQ", flags & _UINT_MAX, kernel.task_va(kernel.machine.current.index), wake))
    empty_list(kernel, entry + 24)


@kernel_symbol("autoremove_wake_function", "default_wake_function", "woken_wake_function")
def wake_function(kernel: Kernel, entry: Ptr, mode: U32, flags: S32, key: Ptr) -> int:
    """Wake the task of an entry: it runs already, so nothing was woken."""
    kernel.part(Locks).waiting = 0
    return 1


@kernel_symbol("prepare_to_wait", "prepare_to_wait_exclusive", "prepare_to_wait_event", runs_guest=True)
def prepare_to_wait(kernel: Kernel, queue: Ptr, entry: Ptr, state: S32) -> int:
    """Put the task on a queue (at its front, once); 0: no signal."""
    node, head = entry + 24, queue + 8
    if load_u64(kernel, node) == node:
        first = load_u64(kernel, head)
        store(kernel, node, struct.pack("<QQ", first, head))
        store_uint(kernel, first + 8, node, 8)
        store_uint(kernel, head, node, 8)
    kernel.part(Locks).waiting = queue
    return 0


@kernel_symbol("finish_wait", runs_guest=True)
def finish_wait(kernel: Kernel, queue: Ptr, entry: Ptr) -> None:
    """Take the task off."""
    node = entry + 24
    following, previous = load_u64(kernel, node), load_u64(kernel, node + 8)
    store_uint(kernel, previous, following, 8)
    store_uint(kernel, following + 8, previous, 8)
    empty_list(kernel, node)
    kernel.part(Locks).waiting = 0


@kernel_symbol("__wake_up", "__wake_up_sync_key", runs_guest=True)
def wake_up(kernel: Kernel, queue: Ptr, mode: U32, count: S32, key: Ptr) -> int:
    """Wake the tasks of a queue: those that run need none; their entries' functions are called."""
    head = queue + 8
    node = load_u64(kernel, head)
    woken = 0
    while node != head:
        following = load_u64(kernel, node)
        woken += bool(kernel.call_s32(load_u64(kernel, node - 8), node - 24, mode, 0, key))
        node = following
    return woken


@kernel_symbol("wake_up_process")
def wake_up_process(kernel: Kernel, task: Ptr) -> int:
    """The one task runs already: 0."""
    return 0
