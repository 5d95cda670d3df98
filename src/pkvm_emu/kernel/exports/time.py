"""Time, delays and conversions (``kernel/time``, ``arch/arm64/lib/delay.c``). Delays end at once: the counter moves on."""

from __future__ import annotations

import struct
from errno import EINTR

from pkvm_emu.kernel.deferred.scheduler import Scheduler
from pkvm_emu.kernel.deferred.tasks import INTERRUPTIBLE, RUNNING, UNINTERRUPTIBLE, Tasks
from pkvm_emu.kernel.guest_access import load_u64, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.kernel.time import HZ, NS_PER_SECOND, Clock
from pkvm_emu.machine.calling import S64, U32, U64, Ptr

_MAX_JIFFY_OFFSET = (1 << 62) - 1
_MAX_SCHEDULE_TIMEOUT = (1 << 63) - 1
_NS_PER_JIFFY = NS_PER_SECOND // HZ


# Reading


@kernel_symbol(
    *("ktime_get", "ktime_get_raw", "ktime_get_boottime", "ktime_get_mono_fast_ns", "ktime_get_raw_fast_ns"),
    *(
        "ktime_get_boot_fast_ns",
        "ktime_get_real",
        "ktime_get_real_fast_ns",
        "ktime_get_raw_ns",
        "ktime_get_boottime_ns",
    ),
    *("sched_clock", "local_clock", "ktime_get_coarse", "ktime_get_tai_fast_ns", "cpu_clock"),
)
def ktime_get(kernel: Kernel) -> int:
    """Nanoseconds since boot. There is no battery clock, so the wall clock starts at the epoch."""
    return kernel.uptime_ns()


@kernel_symbol("ktime_get_with_offset", "ktime_get_coarse_with_offset")
def ktime_get_with_offset(kernel: Kernel, clock: U32) -> int:
    """Nanoseconds of the real-time (0), boot-time (1) or TAI (2) clock: all run from boot."""
    return kernel.uptime_ns()


@kernel_symbol("ktime_mono_to_any")
def ktime_mono_to_any(kernel: Kernel, value: U64, clock: U32) -> int:
    """Another clock's reading of the same moment."""
    return value


@kernel_symbol("ktime_get_seconds", "ktime_get_real_seconds")
def ktime_get_seconds(kernel: Kernel) -> int:
    """Seconds since boot."""
    return kernel.uptime_ns() // NS_PER_SECOND


@kernel_symbol(
    *(
        "ktime_get_ts64",
        "ktime_get_real_ts64",
        "ktime_get_raw_ts64",
        "ktime_get_coarse_ts64",
        "ktime_get_coarse_real_ts64",
    ),
    runs_guest=True,
)
def ktime_get_ts64(kernel: Kernel, result: Ptr) -> None:
    """Seconds and nanoseconds since boot as a ``struct timespec64``."""
    store(kernel, result, struct.pack("<QQ", *divmod(kernel.uptime_ns(), NS_PER_SECOND)))


@kernel_symbol("arch_counter_get_cntvct", "arch_timer_read_ocs_counter")
def arch_counter_get_cntvct(kernel: Kernel) -> int:
    """The counter."""
    return kernel.machine.core.ticks


@kernel_symbol("get_jiffies_64")
def get_jiffies_64(kernel: Kernel) -> int:
    """The number of timer ticks."""
    kernel.part(Clock).publish()
    return kernel.part(Clock).jiffies


# Delays


@kernel_symbol("__const_udelay")
def const_udelay(kernel: Kernel, loops: U64) -> None:
    """Wait for a time in 2**-32 s (what ``udelay`` of a constant compiles to)."""
    kernel.part(Clock).advance(-(-loops * NS_PER_SECOND >> 32) if loops else 0)


@kernel_symbol("__udelay", "udelay")
def udelay(kernel: Kernel, microseconds: U64) -> None:
    """Wait for microseconds."""
    kernel.part(Clock).advance(microseconds * 1000)


@kernel_symbol("__ndelay", "ndelay")
def ndelay(kernel: Kernel, nanoseconds: U64) -> None:
    """Wait for nanoseconds."""
    kernel.part(Clock).advance(nanoseconds)


@kernel_symbol("__delay")
def delay(kernel: Kernel, ticks: U64) -> None:
    """Wait for ticks of the counter."""
    kernel.machine.core.ticks += ticks
    kernel.part(Clock).publish()


def _sleep(kernel: Kernel, nanoseconds: int, what: str) -> None:
    kernel.part(Scheduler).sleep(nanoseconds, what)


@kernel_symbol("msleep", runs_guest=True)
def msleep(kernel: Kernel, milliseconds: U32) -> None:
    """Sleep at least for milliseconds: whole jiffies and one more, as the timer has it."""
    _sleep(kernel, (-(-milliseconds * HZ // 1000) + 1) * _NS_PER_JIFFY, f"msleep({milliseconds})")


@kernel_symbol("msleep_interruptible", runs_guest=True)
def msleep_interruptible(kernel: Kernel, milliseconds: U32) -> int:
    """The same; no signal comes, so nothing is left: 0."""
    msleep(kernel, milliseconds)
    return 0


@kernel_symbol("usleep_range_state", "usleep_range", "usleep_idle_range", runs_guest=True)
def usleep_range(kernel: Kernel, low: U64, high: U64) -> None:
    """Sleep for the shortest time of a range in microseconds."""
    _sleep(kernel, low * 1000, f"usleep_range({low})")


@kernel_symbol("fsleep", runs_guest=True)
def fsleep(kernel: Kernel, microseconds: U64) -> None:
    """Sleep for microseconds."""
    _sleep(kernel, microseconds * 1000, f"fsleep({microseconds})")


@kernel_symbol("ssleep", runs_guest=True)
def ssleep(kernel: Kernel, seconds: U32) -> None:
    """Sleep for seconds."""
    _sleep(kernel, seconds * NS_PER_SECOND, f"ssleep({seconds})")


def _schedule_timeout(kernel: Kernel, timeout: int) -> int:
    """Sleep for jiffies in the state that the task has set; what is left of them."""
    tasks, scheduler = kernel.part(Tasks), kernel.part(Scheduler)
    if timeout == _MAX_SCHEDULE_TIMEOUT:
        scheduler.schedule("schedule_timeout() without a limit")
        return timeout
    task = tasks.current
    end = kernel.uptime_ns() + max(timeout, 0) * _NS_PER_JIFFY
    if task.wait is not None and task.wait.deadline is not None:
        end = task.wait.deadline
    if not scheduler.schedule(f"schedule_timeout({timeout})", max(timeout, 0) * _NS_PER_JIFFY):
        return 0
    return max(-(-(end - kernel.uptime_ns()) // _NS_PER_JIFFY), 0)


@kernel_symbol("schedule_timeout", "io_schedule_timeout", runs_guest=True)
def schedule_timeout(kernel: Kernel, timeout: S64) -> int:
    """Sleep for jiffies, or until somebody wakes the task; what is left. With the state TASK_RUNNING it does not sleep."""
    return _schedule_timeout(kernel, timeout)


@kernel_symbol(
    "schedule_timeout_uninterruptible", "schedule_timeout_killable", "schedule_timeout_idle", runs_guest=True
)
def schedule_timeout_uninterruptible(kernel: Kernel, timeout: S64) -> int:
    """The same in TASK_UNINTERRUPTIBLE."""
    _set_state(kernel, UNINTERRUPTIBLE)
    return _schedule_timeout(kernel, timeout)


@kernel_symbol("schedule_timeout_interruptible", runs_guest=True)
def schedule_timeout_interruptible(kernel: Kernel, timeout: S64) -> int:
    """The same in TASK_INTERRUPTIBLE; no signal comes."""
    _set_state(kernel, INTERRUPTIBLE)
    return _schedule_timeout(kernel, timeout)


def _set_state(kernel: Kernel, state: int) -> None:
    """Set the state, unless this is the same call made again by a task that has slept in it."""
    tasks = kernel.part(Tasks)
    if tasks.current.wait is None:
        tasks.set_state(tasks.current, state)


@kernel_symbol("schedule_hrtimeout", "schedule_hrtimeout_range", runs_guest=True)
def schedule_hrtimeout(kernel: Kernel, expires: Ptr, slack: U64, mode: U32) -> int:
    """Sleep until ``*expires`` (relative where mode has bit 0), or until woken: 0 after the time, -EINTR before it.

    NULL waits until woken.
    """
    scheduler = kernel.part(Scheduler)
    if not expires:
        scheduler.schedule("schedule_hrtimeout() without a limit")
        return -EINTR
    wanted = load_u64(kernel, expires)
    limit = wanted if mode & 1 else max(wanted - kernel.uptime_ns(), 0)
    return -EINTR if scheduler.schedule("schedule_hrtimeout()", limit) else 0


@kernel_symbol("schedule", "io_schedule", "schedule_preempt_disabled", runs_guest=True)
def schedule(kernel: Kernel) -> None:
    """Give the CPU away: the others run. A task that set another state than TASK_RUNNING sleeps until it is woken."""
    kernel.part(Scheduler).schedule("schedule(): a wake-up")


@kernel_symbol("yield", runs_guest=True)
def yield_(kernel: Kernel) -> None:
    """Let the others run."""
    tasks = kernel.part(Tasks)
    tasks.set_state(tasks.current, RUNNING)
    kernel.part(Scheduler).schedule("yield()")


@kernel_symbol("__cond_resched", "_cond_resched", "dynamic_cond_resched", runs_guest=True)
def cond_resched(kernel: Kernel) -> int:
    """Let others run that want to: 0."""
    kernel.run_ready()
    return 0


@kernel_symbol("preempt_schedule", "preempt_schedule_notrace", "preempt_schedule_irq")
def preempt_schedule(kernel: Kernel) -> None:
    """Preemption is on again: nobody preempts here."""


@kernel_symbol("__might_sleep", "__might_resched", "__might_fault", "might_sleep")
def might_sleep(kernel: Kernel) -> None:
    """The check of debug builds, for a place that may sleep."""
    kernel.part(Locks).may_sleep()


# Conversions


@kernel_symbol("__msecs_to_jiffies", "msecs_to_jiffies")
def msecs_to_jiffies(kernel: Kernel, milliseconds: U32) -> int:
    """Milliseconds, rounded up; what is negative as an ``int`` means for ever."""
    return _MAX_JIFFY_OFFSET if milliseconds >> 31 else -(-milliseconds * HZ // 1000)


@kernel_symbol("__usecs_to_jiffies", "usecs_to_jiffies")
def usecs_to_jiffies(kernel: Kernel, microseconds: U32) -> int:
    """Microseconds, rounded up."""
    return -(-microseconds * HZ // 1_000_000)


@kernel_symbol("nsecs_to_jiffies", "nsecs_to_jiffies64")
def nsecs_to_jiffies(kernel: Kernel, nanoseconds: U64) -> int:
    """Nanoseconds, rounded down."""
    return nanoseconds // _NS_PER_JIFFY


@kernel_symbol("jiffies_to_msecs")
def jiffies_to_msecs(kernel: Kernel, count: U64) -> int:
    """Milliseconds of jiffies, 32 bits."""
    return count * (1000 // HZ) & 0xFFFF_FFFF


@kernel_symbol("jiffies_to_usecs")
def jiffies_to_usecs(kernel: Kernel, count: U64) -> int:
    """Microseconds of jiffies, 32 bits."""
    return count * (1_000_000 // HZ) & 0xFFFF_FFFF


@kernel_symbol("jiffies64_to_nsecs")
def jiffies64_to_nsecs(kernel: Kernel, count: U64) -> int:
    """Nanoseconds of jiffies."""
    return count * _NS_PER_JIFFY


@kernel_symbol("ktime_add_safe")
def ktime_add_safe(kernel: Kernel, left: S64, right: S64) -> int:
    """A sum, the largest time where it overflows."""
    total = left + right
    return total if 0 <= total < 1 << 63 else (1 << 63) - 1


@kernel_symbol("ns_to_timespec64")
def ns_to_timespec64(kernel: Kernel, nanoseconds: S64) -> tuple[int, int]:
    """Seconds and nanoseconds, in two registers."""
    return divmod(nanoseconds, NS_PER_SECOND)
