"""Spin locks (``kernel/locking``). A CPU that has to wait tries again in its next turn."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load_u32, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.machine.calling import U32, Ptr

#: ``struct qspinlock``: the low byte says locked; ``struct qrwlock``: low byte writer, readers from bit 9 on.
_LOCKED, _LOCKED_MASK = 1, 0xFF
_WRITER, _WRITER_MASK, _READER = 0xFF, 0x1FF, 0x200
_DAIF = 0x3C0


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
