"""Jiffies timers and high-resolution timers (``kernel/time/timer.c``, ``kernel/time/hrtimer.c``).

A timer runs in a soft interrupt, a high-resolution timer in an interrupt, of whatever context waits or idles when its time comes.
"""

from __future__ import annotations

import struct

from pkvm_emu.kernel.deferred import layouts as at
from pkvm_emu.kernel.deferred.scheduler import NS_PER_JIFFY
from pkvm_emu.kernel.deferred.softirqs import HARDIRQ_OFFSET, SoftIrqs
from pkvm_emu.kernel.deferred.timers import TimerQueue, timer_kind
from pkvm_emu.kernel.guest_access import load, load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug, warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.time import Clock
from pkvm_emu.machine.calling import S32, S64, U32, U64, Ptr

_MASK64 = (1 << 64) - 1
_CPU_MASK = 0x3_FFFF
_PINNED = 0x10_0000
_RELATIVE = 1
_KTIME_MAX = (1 << 63) - 1
_RESTART = 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# Jiffies timers


@kernel_symbol("init_timer_key", "timer_init_key", runs_guest=True)
def init_timer_key(kernel: Kernel, timer: Ptr, function: Ptr, flags: U32, name: Ptr, key: Ptr) -> None:
    """Make a timer that is not pending."""
    store_uint(kernel, timer + at.TIMER_PPREV, 0, 8)
    store(kernel, timer + at.TIMER_FUNCTION, struct.pack("<QI", function, flags | kernel.machine.current.index))


@kernel_symbol("init_timer_on_stack_key", "destroy_timer_on_stack", "timer_destroy_on_stack", runs_guest=True)
def timer_on_stack(kernel: Kernel, timer: Ptr, function: Ptr, flags: U32, name: Ptr, key: Ptr) -> None:
    """Book-keeping of debug builds for timers on stacks."""


def arm_timer(kernel: Kernel, timer: int, expires: int, cpu: int | None = None) -> None:
    """Start a jiffies timer, or move it.

    Args:
        timer: ``struct timer_list``.
        expires: jiffies.
        cpu: where it runs; None for anywhere.
    """
    if not load_u64(kernel, timer + at.TIMER_FUNCTION):
        raise bug(kernel, "kernel/time/timer.c", "a timer without a function is armed")
    ticks = _signed(expires - kernel.part(Clock).jiffies & _MASK64)
    now = kernel.uptime_ns()
    # The tick that makes jiffies reach ``expires``.
    time = (now // NS_PER_JIFFY + ticks) * NS_PER_JIFFY if ticks > 0 else now
    store_uint(kernel, timer + at.TIMER_EXPIRES, expires, 8)
    store_uint(kernel, timer + at.TIMER_PPREV, timer, 8)
    kernel.part(TimerQueue).arm(timer, time, "timer", cpu)


def disarm_timer(kernel: Kernel, timer: int) -> bool:
    """Stop a jiffies timer; whether it was pending."""
    if not kernel.part(TimerQueue).disarm(timer):
        return False
    store_uint(kernel, timer + at.TIMER_PPREV, 0, 8)
    return True


@kernel_symbol("add_timer", "add_timer_local", "add_timer_global", runs_guest=True)
def add_timer(kernel: Kernel, timer: Ptr) -> None:
    """Start a timer at its ``expires``; one that is pending warns."""
    if kernel.part(TimerQueue).is_armed(timer):
        warn(kernel, "kernel/time/timer.c")
        return
    arm_timer(kernel, timer, load_u64(kernel, timer + at.TIMER_EXPIRES), _cpu_of(kernel, timer))


def _cpu_of(kernel: Kernel, timer: int) -> int | None:
    """A pinned timer runs on its CPU."""
    flags = load_u32(kernel, timer + at.TIMER_FLAGS)
    return flags & _CPU_MASK if flags & _PINNED else None


@kernel_symbol("add_timer_on", runs_guest=True)
def add_timer_on(kernel: Kernel, timer: Ptr, cpu: S32) -> None:
    """The same on a CPU."""
    if kernel.part(TimerQueue).is_armed(timer):
        warn(kernel, "kernel/time/timer.c")
        return
    arm_timer(kernel, timer, load_u64(kernel, timer + at.TIMER_EXPIRES), cpu)


@kernel_symbol("mod_timer", runs_guest=True)
def mod_timer(kernel: Kernel, timer: Ptr, expires: U64) -> int:
    """Start a timer or move it; whether it was pending."""
    was_armed = kernel.part(TimerQueue).is_armed(timer)
    arm_timer(kernel, timer, expires, _cpu_of(kernel, timer))
    return was_armed


@kernel_symbol("mod_timer_pending", runs_guest=True)
def mod_timer_pending(kernel: Kernel, timer: Ptr, expires: U64) -> int:
    """Move a timer that is pending; whether it was."""
    if not kernel.part(TimerQueue).is_armed(timer):
        return 0
    return mod_timer(kernel, timer, expires)


@kernel_symbol("timer_reduce", runs_guest=True)
def timer_reduce(kernel: Kernel, timer: Ptr, expires: U64) -> int:
    """Start a timer, or make it come earlier; whether it was pending."""
    is_armed = kernel.part(TimerQueue).is_armed(timer)
    if is_armed and _signed(load_u64(kernel, timer + at.TIMER_EXPIRES) - expires & _MASK64) <= 0:
        return 1
    return mod_timer(kernel, timer, expires)


@kernel_symbol(
    *("del_timer", "timer_delete", "del_timer_sync", "timer_delete_sync", "try_to_del_timer_sync"),
    "timer_delete_sync_try",
    runs_guest=True,
)
def del_timer(kernel: Kernel, timer: Ptr) -> int:
    """Stop a timer; whether it was pending. Its function is never in the middle of anything here."""
    return disarm_timer(kernel, timer)


@kernel_symbol("timer_shutdown", "timer_shutdown_sync", runs_guest=True)
def timer_shutdown(kernel: Kernel, timer: Ptr) -> int:
    """Stop a timer for good: it cannot be armed again."""
    was_armed = disarm_timer(kernel, timer)
    store_uint(kernel, timer + at.TIMER_FUNCTION, 0, 8)
    return was_armed


@timer_kind("timer")
def _expire(kernel: Kernel, timer: int) -> None:
    store_uint(kernel, timer + at.TIMER_PPREV, 0, 8)
    with kernel.part(SoftIrqs).context():
        kernel.call(load_u64(kernel, timer + at.TIMER_FUNCTION), timer)


@kernel_symbol("round_jiffies", "round_jiffies_relative", "round_jiffies_up", "round_jiffies_up_relative")
def round_jiffies(kernel: Kernel, count: U64) -> int:
    """Whole seconds would let CPUs sleep longer; nobody sleeps deep here."""
    return count


# High-resolution timers


@kernel_symbol("hrtimer_init", "hrtimer_init_on_stack", runs_guest=True)
def hrtimer_init(kernel: Kernel, timer: Ptr, clock: S32, mode: U32) -> None:
    """Make a timer that is not queued. All clocks run from boot."""
    store(kernel, timer, bytes(64))
    store_uint(kernel, timer, timer, 8)
    # ``timer->base`` is opaque; what matters is that it is not NULL.
    store_uint(kernel, timer + at.HRTIMER_BASE, timer, 8)


@kernel_symbol("hrtimer_setup", "hrtimer_setup_on_stack", runs_guest=True)
def hrtimer_setup(kernel: Kernel, timer: Ptr, function: Ptr, clock: S32, mode: U32) -> None:
    """The same with its function."""
    hrtimer_init(kernel, timer, clock, mode)
    store_uint(kernel, timer + at.HRTIMER_FUNCTION, function, 8)


def _queue(kernel: Kernel, timer: int, expires: int) -> None:
    store_uint(kernel, timer + at.HRTIMER_STATE, 1, 1)
    kernel.part(TimerQueue).arm(timer, max(expires, 0), "hrtimer")


@kernel_symbol("hrtimer_start_range_ns", runs_guest=True)
def hrtimer_start_range_ns(kernel: Kernel, timer: Ptr, time: S64, slack: U64, mode: U32) -> None:
    """Start a timer at a time, or after one (mode bit 0); one that is queued moves."""
    if not load_u64(kernel, timer + at.HRTIMER_FUNCTION):
        warn(kernel, "kernel/time/hrtimer.c")
        return
    soft = min(time + kernel.uptime_ns(), _KTIME_MAX) if mode & _RELATIVE else time
    expires = min(soft + slack, _KTIME_MAX)
    store_uint(kernel, timer + at.HRTIMER_EXPIRES, expires, 8)
    store_uint(kernel, timer + at.HRTIMER_SOFT_EXPIRES, soft, 8)
    _queue(kernel, timer, soft)


@kernel_symbol("hrtimer_cancel", "hrtimer_try_to_cancel", runs_guest=True)
def hrtimer_cancel(kernel: Kernel, timer: Ptr) -> int:
    """Stop a timer; whether it was queued."""
    was_queued = kernel.part(TimerQueue).disarm(timer)
    store_uint(kernel, timer + at.HRTIMER_STATE, 0, 1)
    return was_queued


@kernel_symbol("hrtimer_active", runs_guest=True)
def hrtimer_active(kernel: Kernel, timer: Ptr) -> int:
    """Whether it is queued."""
    return load(kernel, timer + at.HRTIMER_STATE, 1)[0] & 1


@kernel_symbol("__hrtimer_get_remaining", runs_guest=True)
def hrtimer_get_remaining(kernel: Kernel, timer: Ptr, adjust: U32) -> int:
    """Nanoseconds until it expires, negative afterwards."""
    return load_u64(kernel, timer + at.HRTIMER_EXPIRES) - kernel.uptime_ns()


@kernel_symbol("hrtimer_forward", runs_guest=True)
def hrtimer_forward(kernel: Kernel, timer: Ptr, now: S64, interval: S64) -> int:
    """Move the expiry of a timer that is not queued past ``now`` in whole intervals; how many."""
    expires = _signed(load_u64(kernel, timer + at.HRTIMER_EXPIRES))
    behind = now - expires
    if behind < 0:
        return 0
    if load(kernel, timer + at.HRTIMER_STATE, 1)[0] & 1:
        warn(kernel, "kernel/time/hrtimer.c")
        return 0
    # hrtimer_resolution is one nanosecond.
    interval = max(interval, 1)
    count = behind // interval + 1
    for member in (at.HRTIMER_EXPIRES, at.HRTIMER_SOFT_EXPIRES):
        moved = min(_signed(load_u64(kernel, timer + member)) + count * interval, _KTIME_MAX)
        store_uint(kernel, timer + member, moved, 8)
    return count


@timer_kind("hrtimer")
def _expire_hrtimer(kernel: Kernel, timer: int) -> None:
    store_uint(kernel, timer + at.HRTIMER_STATE, 0, 1)
    with kernel.part(SoftIrqs).context(HARDIRQ_OFFSET):
        again = kernel.call_s32(load_u64(kernel, timer + at.HRTIMER_FUNCTION), timer)
    if again == _RESTART and not kernel.part(TimerQueue).is_armed(timer):
        _queue(kernel, timer, _signed(load_u64(kernel, timer + at.HRTIMER_SOFT_EXPIRES)))
