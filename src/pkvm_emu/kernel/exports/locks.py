"""Spin locks, mutexes and semaphores (``kernel/locking``). A CPU that has to wait tries again in its next turn."""

from __future__ import annotations

import struct

from pkvm_emu.kernel.guest_access import load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.machine.calling import U32, Ptr

#: ``struct qspinlock``: the low byte says locked; ``struct qrwlock``: low byte writer, readers from bit 9 on.
_LOCKED, _LOCKED_MASK = 1, 0xFF
_WRITER, _WRITER_MASK, _READER = 0xFF, 0x1FF, 0x200
_DAIF = 0x3C0
#: ``struct mutex``: owner (task, flags in the low bits) @0, wait_lock @8, osq @12, wait_list @16.
_OWNER_FLAGS = 7
_MUTEX_LIST = 16
#: ``struct rw_semaphore``: count @0 (bit 0 writer, readers from bit 8 on), owner @8, wait_list @24.
_RWSEM_WRITER, _RWSEM_READER, _RWSEM_LIST = 1, 0x100, 24


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
        raise kernel.part(Locks).contend("spin lock", lock)


@kernel_symbol("_raw_spin_lock_irqsave", runs_guest=True)
def raw_spin_lock_irqsave(kernel: Kernel, lock: Ptr) -> int:
    """Take a spin lock; the interrupt mask to give back."""
    raw_spin_lock(kernel, lock)
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
        raise kernel.part(Locks).contend("spin lock", lock)


# Reader-writer spin locks


@kernel_symbol(
    "_raw_read_lock", "_raw_read_lock_bh", "_raw_read_lock_irq", "queued_read_lock_slowpath", runs_guest=True
)
def raw_read_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a reader-writer lock for reading."""
    value = load_u32(kernel, lock)
    if value & _WRITER_MASK:
        raise kernel.part(Locks).contend("reader-writer lock", lock)
    store_uint(kernel, lock, value + _READER, 4)
    kernel.part(Locks).taken(lock, spins=True)


@kernel_symbol("_raw_read_lock_irqsave", runs_guest=True)
def raw_read_lock_irqsave(kernel: Kernel, lock: Ptr) -> int:
    """The same; the interrupt mask to give back."""
    raw_read_lock(kernel, lock)
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
        raise kernel.part(Locks).contend("reader-writer lock", lock)
    store_uint(kernel, lock, _WRITER, 4)
    kernel.part(Locks).taken(lock, spins=True)


@kernel_symbol("_raw_write_lock_irqsave", runs_guest=True)
def raw_write_lock_irqsave(kernel: Kernel, lock: Ptr) -> int:
    """The same; the interrupt mask to give back."""
    raw_write_lock(kernel, lock)
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


def empty_list(kernel: Kernel, head: int) -> None:
    """Make a ``struct list_head`` point at itself."""
    store(kernel, head, struct.pack("<QQ", head, head))


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
    store_uint(kernel, lock, kernel.task_va(kernel.machine.current.index) | owner & _OWNER_FLAGS, 8)
    kernel.part(Locks).taken(lock, spins=False)
    return True


@kernel_symbol("mutex_lock", "mutex_lock_nested", "mutex_lock_io", runs_guest=True)
def mutex_lock(kernel: Kernel, lock: Ptr) -> None:
    """Take a mutex."""
    kernel.part(Locks).may_sleep()
    if not mutex_trylock(kernel, lock):
        raise kernel.part(Locks).contend("mutex", lock)


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
        raise kernel.part(Locks).contend("semaphore", semaphore)


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
    if not down_read_trylock(kernel, semaphore):
        raise kernel.part(Locks).contend("reader-writer semaphore", semaphore)
    return 0


@kernel_symbol("down_write", "down_write_killable", runs_guest=True)
def down_write(kernel: Kernel, semaphore: Ptr) -> int:
    """Take it for writing; 0 where the form returns something."""
    kernel.part(Locks).may_sleep()
    if not down_write_trylock(kernel, semaphore):
        raise kernel.part(Locks).contend("reader-writer semaphore", semaphore)
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
