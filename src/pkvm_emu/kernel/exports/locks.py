"""Spin locks, mutexes, semaphores, completions and wait queues (``kernel/locking``, ``kernel/sched``)."""

from __future__ import annotations

import struct

from pkvm_emu.kernel.guest_access import load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.kernel.time import HZ, NS_PER_SECOND, Clock
from pkvm_emu.machine.calling import S32, S64, U32, Ptr

#: ``struct qspinlock``: the low byte says locked; ``struct qrwlock``: low byte writer, readers from bit 9 on.
_LOCKED, _LOCKED_MASK = 1, 0xFF
_WRITER, _WRITER_MASK, _READER = 0xFF, 0x1FF, 0x200
_DAIF = 0x3C0
#: ``struct mutex``: owner (task, flags in the low bits) @0, wait_lock @8, osq @12, wait_list @16.
_OWNER_FLAGS = 7
_MUTEX_LIST = 16
#: ``struct rw_semaphore``: count @0 (bit 0 writer, readers from bit 8 on), owner @8, wait_list @24.
_RWSEM_WRITER, _RWSEM_READER, _RWSEM_LIST = 1, 0x100, 24
_UINT_MAX = 0xFFFF_FFFF


# Spin locks


def _spin_trylock(kernel: Kernel, lock: int) -> bool:
    value = load_u32(kernel, lock)
    if value & _LOCKED_MASK:
        return False
    store_uint(kernel, lock, value | _LOCKED, 4)
    kernel.part(Locks).taken(lock, spins=True)
    return True


@kernel_symbol("_raw_spin_lock", "_raw_spin_lock_bh", "_raw_spin_lock_irq", "_raw_spin_lock_nested", runs_guest=True)
def raw_spin_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a spin lock."""
    if not _spin_trylock(kernel, lock):
        kernel.part(Locks).contend("spin lock", lock)


@kernel_symbol("_raw_spin_lock_irqsave", runs_guest=True)
def raw_spin_lock_irqsave(kernel: Kernel, lock: Ptr) -> int | None:
    """Take a spin lock; the interrupt mask to give back."""
    if not raw_spin_lock(kernel, lock):
        return None
    return kernel.machine.engine.read("pstate") & _DAIF


@kernel_symbol("_raw_spin_trylock", "_raw_spin_trylock_bh", runs_guest=True)
def raw_spin_trylock(kernel: Kernel, lock: Ptr) -> int:
    """Take a spin lock if it is free."""
    return _spin_trylock(kernel, lock)


@kernel_symbol(
    "_raw_spin_unlock", "_raw_spin_unlock_bh", "_raw_spin_unlock_irq", "_raw_spin_unlock_irqrestore", runs_guest=True
)
def raw_spin_unlock(kernel: Kernel, lock: Ptr) -> None:
    """Release a spin lock."""
    value = load_u32(kernel, lock)
    if not value & _LOCKED_MASK:
        raise kernel.part(Locks).not_held("spin lock", lock)
    store_uint(kernel, lock, value & ~_LOCKED_MASK, 4)
    kernel.part(Locks).released(lock, spins=True)


@kernel_symbol("queued_spin_lock_slowpath", runs_guest=True)
def queued_spin_lock_slowpath(kernel: Kernel, lock: Ptr, value: U32) -> None:
    """Inlined code found the lock held."""
    if not _spin_trylock(kernel, lock):
        kernel.part(Locks).contend("spin lock", lock)


# Reader-writer spin locks


@kernel_symbol(
    "_raw_read_lock", "_raw_read_lock_bh", "_raw_read_lock_irq", "queued_read_lock_slowpath", runs_guest=True
)
def raw_read_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a reader-writer lock for reading."""
    value = load_u32(kernel, lock)
    if value & _WRITER_MASK:
        kernel.part(Locks).contend("reader-writer lock", lock)
    store_uint(kernel, lock, value + _READER, 4)
    kernel.part(Locks).taken(lock, spins=True)


@kernel_symbol("_raw_read_lock_irqsave", runs_guest=True)
def raw_read_lock_irqsave(kernel: Kernel, lock: Ptr) -> int | None:
    """The same; the interrupt mask to give back."""
    if not raw_read_lock(kernel, lock):
        return None
    return kernel.machine.engine.read("pstate") & _DAIF


@kernel_symbol(
    "_raw_read_unlock", "_raw_read_unlock_bh", "_raw_read_unlock_irq", "_raw_read_unlock_irqrestore", runs_guest=True
)
def raw_read_unlock(kernel: Kernel, lock: Ptr) -> None:
    """Release it by a reader."""
    value = load_u32(kernel, lock)
    if value < _READER:
        raise kernel.part(Locks).not_held("reader-writer lock", lock)
    store_uint(kernel, lock, value - _READER, 4)
    kernel.part(Locks).released(lock, spins=True)


@kernel_symbol(
    "_raw_write_lock", "_raw_write_lock_bh", "_raw_write_lock_irq", "queued_write_lock_slowpath", runs_guest=True
)
def raw_write_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a reader-writer lock for writing."""
    if load_u32(kernel, lock):
        kernel.part(Locks).contend("reader-writer lock", lock)
    store_uint(kernel, lock, _WRITER, 4)
    kernel.part(Locks).taken(lock, spins=True)


@kernel_symbol("_raw_write_lock_irqsave", runs_guest=True)
def raw_write_lock_irqsave(kernel: Kernel, lock: Ptr) -> int | None:
    """The same; the interrupt mask to give back."""
    if not raw_write_lock(kernel, lock):
        return None
    return kernel.machine.engine.read("pstate") & _DAIF


@kernel_symbol(
    "_raw_write_unlock",
    "_raw_write_unlock_bh",
    "_raw_write_unlock_irq",
    "_raw_write_unlock_irqrestore",
    runs_guest=True,
)
def raw_write_unlock(kernel: Kernel, lock: Ptr) -> None:
    """Release it by the writer."""
    value = load_u32(kernel, lock)
    if value & _LOCKED_MASK != _WRITER:
        raise kernel.part(Locks).not_held("reader-writer lock", lock)
    store_uint(kernel, lock, value & ~_LOCKED_MASK, 4)
    kernel.part(Locks).released(lock, spins=True)


# Mutexes


def _empty_list(kernel: Kernel, head: int) -> None:
    store(kernel, head, struct.pack("<QQ", head, head))


@kernel_symbol("__mutex_init", runs_guest=True)
def mutex_init(kernel: Kernel, lock: Ptr, name: Ptr, key: Ptr) -> None:
    """Make a free mutex."""
    store(kernel, lock, bytes(_MUTEX_LIST))
    _empty_list(kernel, lock + _MUTEX_LIST)


@kernel_symbol("mutex_trylock", runs_guest=True)
def mutex_trylock(kernel: Kernel, lock: Ptr) -> int:
    """Take a mutex if it is free."""
    owner = load_u64(kernel, lock)
    if owner & ~_OWNER_FLAGS:
        return False
    store_uint(kernel, lock, kernel.task_va(kernel.machine.current.index) | owner & _OWNER_FLAGS, 8)
    kernel.part(Locks).taken(lock, spins=False)
    return True


@kernel_symbol("mutex_lock", "mutex_lock_nested", "mutex_lock_io", runs_guest=True)
def mutex_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a mutex."""
    kernel.part(Locks).may_sleep()
    if not mutex_trylock(kernel, lock):
        kernel.part(Locks).contend("mutex", lock)


@kernel_symbol("mutex_lock_interruptible", "mutex_lock_killable", runs_guest=True)
def mutex_lock_interruptible(kernel: Kernel, lock: Ptr) -> int:
    """The same; no signal comes: 0."""
    mutex_lock(kernel, lock)
    return 0


@kernel_symbol("mutex_unlock", runs_guest=True)
def mutex_unlock(kernel: Kernel, lock: Ptr) -> None:
    """Release a mutex."""
    if load_u64(kernel, lock) & ~_OWNER_FLAGS != kernel.task_va(kernel.machine.current.index):
        raise kernel.part(Locks).not_held("mutex", lock)
    store_uint(kernel, lock, 0, 8)
    kernel.part(Locks).released(lock, spins=False)


@kernel_symbol("mutex_is_locked", runs_guest=True)
def mutex_is_locked(kernel: Kernel, lock: Ptr) -> int:
    """Whether somebody holds it."""
    return load_u64(kernel, lock) & ~_OWNER_FLAGS != 0


@kernel_symbol("mutex_destroy")
def mutex_destroy(kernel: Kernel, lock: Ptr) -> None:
    """Nothing but a check of debug builds."""


# Semaphores: {u32 lock; u32 count; list}


@kernel_symbol("down", runs_guest=True)
def down(kernel: Kernel, semaphore: Ptr) -> None:
    """Take one."""
    kernel.part(Locks).may_sleep()
    if down_trylock(kernel, semaphore):
        kernel.part(Locks).contend("semaphore", semaphore)


@kernel_symbol("down_interruptible", "down_killable", runs_guest=True)
def down_interruptible(kernel: Kernel, semaphore: Ptr) -> int:
    """The same; no signal comes: 0."""
    down(kernel, semaphore)
    return 0


@kernel_symbol("down_trylock", runs_guest=True)
def down_trylock(kernel: Kernel, semaphore: Ptr) -> int:
    """0 where one was taken, 1 where there was none."""
    count = load_u32(kernel, semaphore + 4)
    if not count:
        return 1
    store_uint(kernel, semaphore + 4, count - 1, 4)
    kernel.part(Locks).taken(semaphore, spins=False)
    return 0


@kernel_symbol("up", runs_guest=True)
def up(kernel: Kernel, semaphore: Ptr) -> None:
    """Give one back (who did not take it may, too)."""
    store_uint(kernel, semaphore + 4, load_u32(kernel, semaphore + 4) + 1, 4)
    kernel.part(Locks).released(semaphore, spins=False)


@kernel_symbol("__init_rwsem", runs_guest=True)
def init_rwsem(kernel: Kernel, semaphore: Ptr, name: Ptr, key: Ptr) -> None:
    """Make a free reader-writer semaphore."""
    store(kernel, semaphore, bytes(_RWSEM_LIST))
    _empty_list(kernel, semaphore + _RWSEM_LIST)


@kernel_symbol("down_read_trylock", runs_guest=True)
def down_read_trylock(kernel: Kernel, semaphore: Ptr) -> int:
    """Take it for reading if no writer has it."""
    count = load_u64(kernel, semaphore)
    if count & _RWSEM_WRITER:
        return False
    store_uint(kernel, semaphore, count + _RWSEM_READER, 8)
    kernel.part(Locks).taken(semaphore, spins=False)
    return True


@kernel_symbol("down_write_trylock", runs_guest=True)
def down_write_trylock(kernel: Kernel, semaphore: Ptr) -> int:
    """Take it for writing if nobody has it."""
    if load_u64(kernel, semaphore):
        return False
    store_uint(kernel, semaphore, _RWSEM_WRITER, 8)
    kernel.part(Locks).taken(semaphore, spins=False)
    return True


@kernel_symbol("down_read", "down_read_interruptible", "down_read_killable", runs_guest=True)
def down_read(kernel: Kernel, semaphore: Ptr) -> int:
    """Take it for reading; 0 where the form returns something."""
    kernel.part(Locks).may_sleep()
    if not down_read_trylock(kernel, semaphore):
        kernel.part(Locks).contend("reader-writer semaphore", semaphore)
    return 0


@kernel_symbol("down_write", "down_write_killable", runs_guest=True)
def down_write(kernel: Kernel, semaphore: Ptr) -> int:
    """Take it for writing; 0 where the form returns something."""
    kernel.part(Locks).may_sleep()
    if not down_write_trylock(kernel, semaphore):
        kernel.part(Locks).contend("reader-writer semaphore", semaphore)
    return 0


@kernel_symbol("up_read", runs_guest=True)
def up_read(kernel: Kernel, semaphore: Ptr) -> None:
    """Release it by a reader."""
    count = load_u64(kernel, semaphore)
    if count < _RWSEM_READER:
        raise kernel.part(Locks).not_held("reader-writer semaphore", semaphore)
    store_uint(kernel, semaphore, count - _RWSEM_READER, 8)
    kernel.part(Locks).released(semaphore, spins=False)


@kernel_symbol("up_write", runs_guest=True)
def up_write(kernel: Kernel, semaphore: Ptr) -> None:
    """Release it by the writer."""
    if not load_u64(kernel, semaphore) & _RWSEM_WRITER:
        raise kernel.part(Locks).not_held("reader-writer semaphore", semaphore)
    store_uint(kernel, semaphore, 0, 8)
    kernel.part(Locks).released(semaphore, spins=False)


# Completions: {u32 done; swait_queue_head {u32 lock; list} @8}


@kernel_symbol("__init_swait_queue_head", "__init_waitqueue_head", runs_guest=True)
def init_waitqueue_head(kernel: Kernel, queue: Ptr, name: Ptr, key: Ptr) -> None:
    """Make an empty wait queue."""
    store_uint(kernel, queue, 0, 4)
    _empty_list(kernel, queue + 8)


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
        raise kernel.part(Locks).nothing_wakes(f"completion {kernel.describe(completion)} is not done")
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
    _empty_list(kernel, entry + 24)


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
    _empty_list(kernel, node)
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
