"""Mutexes, semaphores and reader-writer semaphores (``kernel/locking``): a task that has to wait sleeps."""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.kernel.deferred.scheduler import NS_PER_JIFFY, Scheduler
from pkvm_emu.kernel.guest_access import empty_list, load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.machine.calling import S64, Ptr

#: ``struct mutex``: owner (task, flags in the low bits) @0, wait_lock @8, osq @12, wait_list @16.
_OWNER_FLAGS = 7
_MUTEX_LIST = 16
#: ``struct rw_semaphore``: count @0 (bit 0 writer, readers from bit 8 on), owner @8, wait_list @24.
_RWSEM_WRITER, _RWSEM_READER, _RWSEM_LIST = 1, 0x100, 24
_ETIME = 62


def _wait_for(kernel: Kernel, kind: str, lock: int, is_free: Callable[[], bool]) -> None:
    """Sleep until a lock is free.

    Raises:
        Stuck: the task that wants it has it, or nothing can release it.
    """
    locks = kernel.part(Locks)
    if kernel.machine.core.in_turns or locks.held_by_current(lock):
        raise locks.contend(kind, lock)
    kernel.part(Scheduler).wait(f"{kind} {kernel.describe(lock)}{_holder(kernel, lock)}", lock, is_free)


def _holder(kernel: Kernel, lock: int) -> str:
    holder = kernel.part(Locks).holders.get(lock)
    if holder is None:
        return ""
    return f" (taken at {kernel.machine.core.describe(holder.caller - 4, 1)})"


def _released(kernel: Kernel, lock: int) -> None:
    kernel.part(Locks).released(lock, spins=False)
    kernel.part(Scheduler).wake_waiters(lock)


def _current(kernel: Kernel) -> int:
    return kernel.machine.engine.read("sp_el0")


# Mutexes


@kernel_symbol("__mutex_init", runs_guest=True)
def mutex_init(kernel: Kernel, lock: Ptr, name: Ptr, key: Ptr) -> None:
    """Make a free mutex."""
    store(kernel, lock, bytes(_MUTEX_LIST))
    empty_list(kernel, lock + _MUTEX_LIST)


@kernel_symbol("mutex_trylock", runs_guest=True)
def mutex_trylock(kernel: Kernel, lock: Ptr) -> int:
    """Take a mutex if it is free."""
    owner = load_u64(kernel, lock)
    if owner & ~_OWNER_FLAGS:
        return False
    store_uint(kernel, lock, _current(kernel) | owner & _OWNER_FLAGS, 8)
    kernel.part(Locks).taken(lock, spins=False)
    return True


@kernel_symbol("mutex_lock", "mutex_lock_nested", "mutex_lock_io", runs_guest=True)
def mutex_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a mutex."""
    kernel.part(Locks).may_sleep()
    while not mutex_trylock(kernel, lock):
        _wait_for(kernel, "mutex", lock, lambda: not load_u64(kernel, lock) & ~_OWNER_FLAGS)


@kernel_symbol("mutex_lock_interruptible", "mutex_lock_killable", runs_guest=True)
def mutex_lock_interruptible(kernel: Kernel, lock: Ptr) -> int:
    """The same; no signal comes: 0."""
    mutex_lock(kernel, lock)
    return 0


@kernel_symbol("mutex_unlock", runs_guest=True)
def mutex_unlock(kernel: Kernel, lock: Ptr) -> None:
    """Release a mutex."""
    if load_u64(kernel, lock) & ~_OWNER_FLAGS != _current(kernel):
        raise kernel.part(Locks).not_held("mutex", lock)
    store_uint(kernel, lock, 0, 8)
    _released(kernel, lock)


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
    while down_trylock(kernel, semaphore):
        # Whoever has one need not be who gives it back, so that the same task took it says nothing.
        if kernel.machine.core.in_turns:
            raise kernel.part(Locks).contend("semaphore", semaphore)
        kernel.part(Scheduler).wait(
            f"semaphore {kernel.describe(semaphore)}{_holder(kernel, semaphore)}",
            semaphore,
            lambda: load_u32(kernel, semaphore + 4) != 0,
        )


@kernel_symbol("down_interruptible", "down_killable", runs_guest=True)
def down_interruptible(kernel: Kernel, semaphore: Ptr) -> int:
    """The same; no signal comes: 0."""
    down(kernel, semaphore)
    return 0


@kernel_symbol("down_timeout", runs_guest=True)
def down_timeout(kernel: Kernel, semaphore: Ptr, timeout: S64) -> int:
    """The same for jiffies at most: 0 or -ETIME."""

    def is_free() -> bool:
        return load_u32(kernel, semaphore + 4) != 0

    what = f"semaphore {kernel.describe(semaphore)}"
    if not kernel.part(Scheduler).wait(what, semaphore, is_free, timeout * NS_PER_JIFFY):
        return -_ETIME
    down_trylock(kernel, semaphore)
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
    _released(kernel, semaphore)


@kernel_symbol("__init_rwsem", runs_guest=True)
def init_rwsem(kernel: Kernel, semaphore: Ptr, name: Ptr, key: Ptr) -> None:
    """Make a free reader-writer semaphore."""
    store(kernel, semaphore, bytes(_RWSEM_LIST))
    empty_list(kernel, semaphore + _RWSEM_LIST)


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
    while not down_read_trylock(kernel, semaphore):
        _wait_for(kernel, "reader-writer semaphore", semaphore, lambda: not load_u64(kernel, semaphore) & _RWSEM_WRITER)
    return 0


@kernel_symbol("down_write", "down_write_killable", runs_guest=True)
def down_write(kernel: Kernel, semaphore: Ptr) -> int:
    """Take it for writing; 0 where the form returns something."""
    kernel.part(Locks).may_sleep()
    while not down_write_trylock(kernel, semaphore):
        _wait_for(kernel, "reader-writer semaphore", semaphore, lambda: not load_u64(kernel, semaphore))
    return 0


@kernel_symbol("up_read", runs_guest=True)
def up_read(kernel: Kernel, semaphore: Ptr) -> None:
    """Release it by a reader."""
    count = load_u64(kernel, semaphore)
    if count < _RWSEM_READER:
        raise kernel.part(Locks).not_held("reader-writer semaphore", semaphore)
    store_uint(kernel, semaphore, count - _RWSEM_READER, 8)
    _released(kernel, semaphore)


@kernel_symbol("up_write", runs_guest=True)
def up_write(kernel: Kernel, semaphore: Ptr) -> None:
    """Release it by the writer."""
    if not load_u64(kernel, semaphore) & _RWSEM_WRITER:
        raise kernel.part(Locks).not_held("reader-writer semaphore", semaphore)
    store_uint(kernel, semaphore, 0, 8)
    _released(kernel, semaphore)


@kernel_symbol("downgrade_write", runs_guest=True)
def downgrade_write(kernel: Kernel, semaphore: Ptr) -> None:
    """The writer goes on as a reader."""
    if not load_u64(kernel, semaphore) & _RWSEM_WRITER:
        raise kernel.part(Locks).not_held("reader-writer semaphore", semaphore)
    store_uint(kernel, semaphore, _RWSEM_READER, 8)
    kernel.part(Scheduler).wake_waiters(semaphore)
