"""Tasklets, ``irq_work`` and RCU (``kernel/softirq.c``, ``kernel/irq_work.c``, ``kernel/rcu``)."""

from __future__ import annotations

from pkvm_emu.kernel.deferred import layouts as at
from pkvm_emu.kernel.deferred.scheduler import Scheduler
from pkvm_emu.kernel.deferred.softirqs import HARDIRQ_OFFSET, Raised, SoftIrqs, softirq_kind
from pkvm_emu.kernel.exports.workqueue import queue_work
from pkvm_emu.kernel.guest_access import load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.machine.calling import S32, U64, Ptr

_SCHEDULED, _RUNNING = 1, 2
_TASKLET_SIZE = 40
_WORK_PENDING, _WORK_BUSY = 1, 2
_UNBOUND_CPU = 0xFFFF

# Tasklets


@kernel_symbol("tasklet_init", runs_guest=True)
def tasklet_init(kernel: Kernel, tasklet: Ptr, function: Ptr, data: U64) -> None:
    """Make a tasklet that calls ``function(data)``."""
    store(kernel, tasklet, bytes(_TASKLET_SIZE))
    store_uint(kernel, tasklet + at.TASKLET_FUNCTION, function, 8)
    store_uint(kernel, tasklet + at.TASKLET_DATA, data, 8)


@kernel_symbol("tasklet_setup", runs_guest=True)
def tasklet_setup(kernel: Kernel, tasklet: Ptr, function: Ptr) -> None:
    """Make a tasklet that calls ``function(tasklet)``."""
    tasklet_init(kernel, tasklet, function, 0)
    store_uint(kernel, tasklet + at.TASKLET_USES_CALLBACK, 1, 1)


@kernel_symbol("__tasklet_schedule", "__tasklet_hi_schedule", runs_guest=True)
def tasklet_schedule(kernel: Kernel, tasklet: Ptr) -> None:
    """Let a tasklet run; the caller has set its state."""
    kernel.part(SoftIrqs).raise_("tasklet", tasklet)


@softirq_kind("tasklet")
def _run_tasklet(kernel: Kernel, raised: Raised) -> bool:
    tasklet = raised.address
    if load_u32(kernel, tasklet + at.TASKLET_COUNT):
        return False
    state = load_u64(kernel, tasklet + at.TASKLET_STATE)
    store_uint(kernel, tasklet + at.TASKLET_STATE, state & ~_SCHEDULED | _RUNNING, 8)
    function = load_u64(kernel, tasklet + at.TASKLET_FUNCTION)
    uses_callback = kernel.memory.read(tasklet + at.TASKLET_USES_CALLBACK, 1)[0]
    argument = tasklet if uses_callback else load_u64(kernel, tasklet + at.TASKLET_DATA)
    with kernel.part(SoftIrqs).context():
        kernel.call(function, argument)
    state = load_u64(kernel, tasklet + at.TASKLET_STATE)
    store_uint(kernel, tasklet + at.TASKLET_STATE, state & ~_RUNNING, 8)
    return True


@kernel_symbol("tasklet_kill", runs_guest=True)
def tasklet_kill(kernel: Kernel, tasklet: Ptr) -> None:
    """Wait until a tasklet that is scheduled has run."""

    def is_idle() -> bool:
        return not load_u64(kernel, tasklet + at.TASKLET_STATE) & (_SCHEDULED | _RUNNING)

    kernel.part(Scheduler).wait(f"tasklet {kernel.describe(tasklet)}", tasklet, is_idle)


@kernel_symbol("tasklet_unlock_wait", "tasklet_unlock_spin_wait", "tasklet_unlock")
def tasklet_unlock_wait(kernel: Kernel, tasklet: Ptr) -> None:
    """A tasklet is never in the middle of anything while others run."""


# irq_work


@kernel_symbol("irq_work_queue", runs_guest=True)
def irq_work_queue(kernel: Kernel, work: Ptr) -> int:
    """Let a function run in the next interrupt; False where it is queued already."""
    flags = load_u32(kernel, work + at.IRQ_WORK_FLAGS)
    if flags & _WORK_PENDING:
        return False
    store_uint(kernel, work + at.IRQ_WORK_FLAGS, flags | _WORK_PENDING | _WORK_BUSY, 4)
    kernel.part(SoftIrqs).raise_("irq_work", work)
    return True


@kernel_symbol("irq_work_queue_on", runs_guest=True)
def irq_work_queue_on(kernel: Kernel, work: Ptr, cpu: S32) -> int:
    """The same; the CPU makes no difference to what it does."""
    return irq_work_queue(kernel, work)


@softirq_kind("irq_work")
def _run_irq_work(kernel: Kernel, raised: Raised) -> bool:
    flags = load_u32(kernel, raised.address + at.IRQ_WORK_FLAGS) & ~_WORK_PENDING
    store_uint(kernel, raised.address + at.IRQ_WORK_FLAGS, flags, 4)
    with kernel.part(SoftIrqs).context(HARDIRQ_OFFSET):
        kernel.call(load_u64(kernel, raised.address + at.IRQ_WORK_FUNCTION), raised.address)
    flags = load_u32(kernel, raised.address + at.IRQ_WORK_FLAGS)
    if not flags & _WORK_PENDING:
        store_uint(kernel, raised.address + at.IRQ_WORK_FLAGS, flags & ~_WORK_BUSY, 4)
    return True


@kernel_symbol("irq_work_sync", runs_guest=True)
def irq_work_sync(kernel: Kernel, work: Ptr) -> None:
    """Wait until it has run."""

    def is_idle() -> bool:
        return not load_u32(kernel, work + at.IRQ_WORK_FLAGS) & _WORK_BUSY

    kernel.part(Scheduler).wait(f"irq_work {kernel.describe(work)}", work, is_idle)


# RCU


@kernel_symbol("__rcu_read_lock", "__rcu_read_unlock", "rcu_read_unlock_strict")
def rcu_read(kernel: Kernel) -> None:
    """Nobody is preempted while reading."""


@kernel_symbol("synchronize_rcu", "synchronize_rcu_expedited", "synchronize_net", "synchronize_rcu_tasks")
def synchronize_rcu(kernel: Kernel) -> None:
    """Wait for a grace period: no reader is in the middle of anything, so it is over."""
    kernel.part(Locks).may_sleep()


@kernel_symbol("call_rcu", "call_rcu_hurry", "call_rcu_tasks", runs_guest=True)
def call_rcu(kernel: Kernel, head: Ptr, function: Ptr) -> None:
    """Call ``function(head)`` after a grace period: not before the caller gives the CPU away."""
    store_uint(kernel, head + 8, function, 8)
    kernel.part(SoftIrqs).raise_("rcu", head, function)


@kernel_symbol("rcu_barrier", "rcu_barrier_tasks", runs_guest=True)
def rcu_barrier(kernel: Kernel) -> None:
    """Wait until all callbacks of ``call_rcu`` have run."""
    kernel.part(Locks).may_sleep()
    kernel.part(SoftIrqs).run_all("rcu")


@kernel_symbol("queue_rcu_work", runs_guest=True)
def queue_rcu_work(kernel: Kernel, queue: Ptr, work: Ptr) -> int:
    """Queue an item after a grace period; whether it was not pending."""
    return queue_work(kernel, _UNBOUND_CPU, queue, work)


# SRCU: {unsigned index; per-CPU data; ...}: readers do not sleep in another context's way here


@kernel_symbol("init_srcu_struct", "__init_srcu_struct", runs_guest=True)
def init_srcu_struct(kernel: Kernel, domain: Ptr) -> int:
    """Make a domain: 0."""
    store_uint(kernel, domain, 0, 4)
    return 0


@kernel_symbol("__srcu_read_lock", runs_guest=True)
def srcu_read_lock(kernel: Kernel, domain: Ptr) -> int:
    """Begin to read; the index to give back."""
    return load_u32(kernel, domain) & 1


@kernel_symbol(
    "__srcu_read_unlock", "cleanup_srcu_struct", "synchronize_srcu", "synchronize_srcu_expedited", "srcu_barrier"
)
def srcu_done(kernel: Kernel, domain: Ptr) -> None:
    """End reading, or wait for all who read: it is over at once."""


@kernel_symbol("call_srcu", runs_guest=True)
def call_srcu(kernel: Kernel, domain: Ptr, head: Ptr, function: Ptr) -> None:
    """Call ``function(head)`` after a grace period of a domain."""
    call_rcu(kernel, head, function)
