"""Timers, tasklets, ``irq_work`` and RCU callbacks as modules use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import Calls, loaded, undone

SOURCE = r"""
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/delay.h>
#include <linux/timer.h>

int fired, in_softirq_then, in_hardirq_then;
static u32 count(void) { return current->thread_info.preempt.count; }
static void fire(struct timer_list *timer) { fired++; in_softirq_then = !!(count() & 0xff00); }
static DEFINE_TIMER(timer, fire);
int start(int ms) { return mod_timer(&timer, jiffies + msecs_to_jiffies(ms)); }
int start_if_pending(int ms) { return mod_timer_pending(&timer, jiffies + msecs_to_jiffies(ms)); }
int reduce(int ms) { return timer_reduce(&timer, jiffies + msecs_to_jiffies(ms)); }
int pending(void) { return timer_pending(&timer); }
int stop(void) { return del_timer_sync(&timer); }
int add(int ms) { timer.expires = jiffies + msecs_to_jiffies(ms); add_timer(&timer); return 0; }
int softirq_now(void) { return !!count(); }

static struct timer_list sleeper;
static void sleep_in_timer(struct timer_list *t) { msleep(4); }
int start_sleeper(void) { timer_setup(&sleeper, sleep_in_timer, 0); return mod_timer(&sleeper, jiffies + 1); }

static struct hrtimer precise;
static int rounds;
int ticks;
long long expired_at;
static enum hrtimer_restart tick(struct hrtimer *t)
{
	ticks++;
	expired_at = ktime_get();
	in_hardirq_then = !!(count() & 0xf0000);
	if (ticks >= rounds)
		return HRTIMER_NORESTART;
	hrtimer_forward_now(t, ms_to_ktime(10));
	return HRTIMER_RESTART;
}
int start_precise(int us, int n)
{
	rounds = n;
	hrtimer_init(&precise, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	precise.function = tick;
	hrtimer_start(&precise, ns_to_ktime(us * 1000ull), HRTIMER_MODE_REL);
	return hrtimer_active(&precise);
}
int cancel_precise(void) { return hrtimer_cancel(&precise); }
int start_without_function(void)
{
	hrtimer_init(&precise, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	hrtimer_start(&precise, ms_to_ktime(1), HRTIMER_MODE_REL);
	return hrtimer_active(&precise);
}

int tasklets;
static void run_tasklet(struct tasklet_struct *t) { tasklets++; }
static struct tasklet_struct task;
int schedule_tasklet(void) { if (!task.callback) tasklet_setup(&task, run_tasklet); tasklet_schedule(&task); return tasklets; }
int disable_tasklet(void) { tasklet_disable_nosync(&task); return 0; }
int enable_tasklet(void) { tasklet_enable(&task); return 0; }
int kill_tasklet(void) { tasklet_kill(&task); return tasklets; }

int irq_works;
static void run_irq_work(struct irq_work *w) { irq_works++; }
static DEFINE_IRQ_WORK(iwork, run_irq_work);
int queue_irq_work(void) { return irq_work_queue(&iwork); }
int sync_irq_work(void) { irq_work_sync(&iwork); return irq_works; }

int released;
static struct rcu_head head;
static void release(struct rcu_head *h) { released++; }
int call_release(void) { call_rcu(&head, release); return released; }
int barrier_then_released(void) { rcu_barrier(); return released; }

static int __init timers_init(void) { return 0; }
module_init(timers_init);
"""


@pytest.fixture(scope="module", params=["14", "15", "16"])
def shared(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> Calls:
    return loaded(c_module(SOURCE, None, name="timers", generation=request.param), "timers")


@pytest.fixture
def timers(shared: Calls) -> Iterator[Calls]:
    yield from undone(shared)


def test_a_timer_fires_at_its_jiffy_in_a_soft_interrupt(timers: Calls) -> None:
    start = timers.system.kernel.uptime_ns()
    assert timers.start(100) == 0
    assert timers.pending() == 1
    timers.system.idle()
    assert timers["fired"] == 1
    assert timers["in_softirq_then"] == 1
    assert timers.softirq_now() == 0
    assert timers.pending() == 0
    assert 96_000_000 <= timers.system.kernel.uptime_ns() - start <= 104_000_000


def test_moving_stopping_and_reducing_say_whether_it_was_pending(timers: Calls) -> None:
    assert timers.start_if_pending(10) == 0
    assert timers.start(1000) == 0
    assert timers.start(2000) == 1
    assert timers.reduce(3000) == 1
    timers.system.idle(1.5)
    assert timers["fired"] == 0
    assert timers.reduce(100) == 1
    timers.system.idle(0.2)
    assert timers["fired"] == 1
    assert timers.stop() == 0
    timers.start(10)
    assert timers.stop() == 1
    timers.system.idle(1)
    assert timers["fired"] == 1


def test_adding_a_pending_timer_warns_and_changes_nothing(timers: Calls) -> None:
    timers.add(100)
    timers.add(5000)
    assert "WARNING" in timers.log
    timers.system.idle(0.2)
    assert timers["fired"] == 1


def test_sleeping_in_a_timer_is_reported(timers: Calls) -> None:
    timers.start_sleeper()
    timers.system.idle()
    assert "BUG: scheduling while atomic: init/1/0x00000100" in timers.log


def test_a_high_resolution_timer_keeps_to_the_microsecond_and_restarts(timers: Calls) -> None:
    start = timers.system.kernel.uptime_ns()
    assert timers.start_precise(1500, 1) == 1
    timers.system.idle()
    assert timers["ticks"] == 1
    assert timers["in_hardirq_then"] == 1
    assert 1_500_000 <= timers.system.kernel.uptime_ns() - start < 1_560_000
    timers.start_precise(1000, 4)
    timers.system.idle(1)
    assert timers["ticks"] == 4
    assert timers.cancel_precise() == 0


def test_a_cancelled_high_resolution_timer_does_not_fire(timers: Calls) -> None:
    timers.start_precise(1000, 1)
    assert timers.cancel_precise() == 1
    timers.system.idle(1)
    assert timers["ticks"] == 0


def test_a_high_resolution_timer_without_a_function_warns(timers: Calls) -> None:
    assert timers.start_without_function() == 0
    assert "WARNING" in timers.log


def test_a_tasklet_runs_once_after_its_caller_and_not_while_disabled(timers: Calls) -> None:
    assert timers.schedule_tasklet() == 0
    assert timers.schedule_tasklet() == 0
    timers.system.idle()
    assert timers["tasklets"] == 1
    timers.disable_tasklet()
    timers.schedule_tasklet()
    timers.system.idle()
    assert timers["tasklets"] == 1
    timers.enable_tasklet()
    assert timers.kill_tasklet() == 2


def test_irq_work_runs_once_and_can_be_waited_for(timers: Calls) -> None:
    assert timers.queue_irq_work() == 1
    assert timers.queue_irq_work() == 0
    assert timers.sync_irq_work() == 1


def test_an_rcu_callback_runs_after_its_caller(timers: Calls) -> None:
    assert timers.call_release() == 0
    assert timers.barrier_then_released() == 1
