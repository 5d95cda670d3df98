"""Work queues as modules use them: what runs, when, in which order, and what waits for what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import Calls, loaded, undone

from pkvm_emu.errors import ModuleError
from pkvm_emu.machine.core import Stuck

SOURCE = r"""
#include <linux/workqueue.h>
#include <linux/delay.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/smp.h>

char order[64];
static int used;
static void note(char c) { order[used++] = c; }

int ran, on_cpu = -1, was_pending;
static void count_work(struct work_struct *work) { ran++; was_pending = work_pending(work); on_cpu = smp_processor_id(); }
static DECLARE_WORK(counter, count_work);
int queue(void) { return schedule_work(&counter); }
int queue_on(int cpu) { return schedule_work_on(cpu, &counter); }
int is_pending(void) { return work_pending(&counter); }
int cancel(void) { return cancel_work_sync(&counter); }
int flush(void) { return flush_work(&counter); }
int busy(void) { return work_busy(&counter); }

static DECLARE_DELAYED_WORK(later, count_work);
int queue_later(int ms) { return schedule_delayed_work(&later, msecs_to_jiffies(ms)); }
int move_later(int ms) { return mod_delayed_work(system_wq, &later, msecs_to_jiffies(ms)); }
int cancel_later(void) { return cancel_delayed_work_sync(&later); }
int flush_later(void) { return flush_delayed_work(&later); }
int later_pending(void) { return delayed_work_pending(&later); }

static void sleepy_a(struct work_struct *w) { note('a'); msleep(20); note('A'); }
static void sleepy_b(struct work_struct *w) { note('b'); msleep(5); note('B'); }
static DECLARE_WORK(work_a, sleepy_a);
static DECLARE_WORK(work_b, sleepy_b);
int both_on_system(void) { schedule_work(&work_a); schedule_work(&work_b); return 0; }
int flush_a(void) { return flush_work(&work_a); }
int cancel_a(void) { return cancel_work_sync(&work_a); }

static struct workqueue_struct *own;
int make_ordered(void) { own = alloc_ordered_workqueue("own/%d", 0, 7); return own ? 0 : -ENOMEM; }
int make_parallel(int n) { own = alloc_workqueue("own", 0, n); return own ? 0 : -ENOMEM; }
int both_on_own(void) { queue_work(own, &work_a); queue_work(own, &work_b); return 0; }
int flush_own(void) { flush_workqueue(own); return 0; }
int destroy_own(void) { destroy_workqueue(own); return 0; }
int queue_on_own(void) { return queue_work(own, &counter); }

static int periods;
static struct delayed_work periodic;
static void again(struct work_struct *w) { periods++; schedule_delayed_work(&periodic, 25); }
int start_periodic(void) { INIT_DELAYED_WORK(&periodic, again); return schedule_delayed_work(&periodic, 25); }
int stop_periodic(void) { return cancel_delayed_work_sync(&periodic); }
int count_periods(void) { return periods; }

static void flush_myself(struct work_struct *w) { flush_work(w); }
static DECLARE_WORK(selfish, flush_myself);
int queue_selfish(void) { return schedule_work(&selfish); }

static struct work_struct chain;
static int links;
static void next_link(struct work_struct *w) { if (++links < 5) queue_work(own, w); }
int start_chain(void) { INIT_WORK(&chain, next_link); queue_work(own, &chain); drain_workqueue(own); return links; }

static struct work_struct restless;
static void at_once(struct work_struct *w) { queue_work(system_wq, w); }
int start_restless(void) { INIT_WORK(&restless, at_once); return schedule_work(&restless); }
static int __init work_init(void) { return schedule_work(&counter) ? 0 : -EBUSY; }
module_init(work_init);
"""


@pytest.fixture(scope="module", params=["14", "15", "16"])
def shared(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> Calls:
    return loaded(c_module(SOURCE, None, name="works", generation=request.param), "works")


@pytest.fixture
def works(shared: Calls) -> Iterator[Calls]:
    yield from undone(shared)


def test_work_queued_by_init_runs_before_the_boot_goes_on(works: Calls) -> None:
    assert works["ran"] == 1
    assert works["was_pending"] == 0


def test_a_pending_item_is_not_queued_twice(works: Calls) -> None:
    assert works.queue() == 1
    assert works.queue() == 0
    assert works.is_pending() == 1
    assert works.busy() == 1
    works.system.idle()
    assert works["ran"] == 2
    assert works.is_pending() == 0
    assert works.busy() == 0


def test_cancelling_says_whether_there_was_anything(works: Calls) -> None:
    works.queue()
    assert works.cancel() == 1
    assert works.cancel() == 0
    works.system.idle()
    assert works["ran"] == 1


def test_flushing_runs_the_item_and_says_whether_it_was_idle(works: Calls) -> None:
    assert works.flush() == 0
    works.queue()
    assert works.flush() == 1
    assert works["ran"] == 2


def test_delayed_work_waits_for_its_time(works: Calls) -> None:
    start = works.system.kernel.uptime_ns()
    assert works.queue_later(100) == 1
    assert works.queue_later(100) == 0
    works.system.kernel.run_ready()
    assert works["ran"] == 1
    assert works.later_pending() == 1
    works.system.idle()
    assert works["ran"] == 2
    assert 96_000_000 <= works.system.kernel.uptime_ns() - start <= 104_000_000


def test_delayed_work_can_be_moved_cancelled_and_flushed(works: Calls) -> None:
    works.queue_later(100)
    assert works.move_later(1000) == 1
    works.system.idle(0.5)
    assert works["ran"] == 1
    assert works.cancel_later() == 1
    assert works.cancel_later() == 0
    assert works.move_later(1000) == 0
    assert works.flush_later() == 1
    assert works["ran"] == 2
    assert works.later_pending() == 0


def test_an_item_that_sleeps_lets_the_next_one_run(works: Calls) -> None:
    works.both_on_system()
    works.system.idle()
    assert works.text("order") == "abBA"


def test_an_ordered_queue_runs_one_item_after_the_other(works: Calls) -> None:
    assert works.make_ordered() == 0
    works.both_on_own()
    works.flush_own()
    assert works.text("order") == "aAbB"


@pytest.mark.parametrize(("active", "order"), [(1, "aAbB"), (2, "abBA"), (0, "abBA")])
def test_max_active_limits_how_many_items_run(works: Calls, active: int, order: str) -> None:
    works.make_parallel(active)
    works.both_on_own()
    works.destroy_own()
    assert works.text("order") == order


def test_cancelling_waits_for_an_item_that_runs(works: Calls) -> None:
    works.both_on_system()
    works.system.kernel.run_ready()
    assert works.text("order") == "ab"
    assert works.cancel_a() == 0
    assert works.text("order") == "abBA"


def test_a_snapshot_keeps_an_item_that_sleeps(works: Calls) -> None:
    works.both_on_system()
    works.system.kernel.run_ready()
    middle = works.system.snapshot()
    digest = works.system.machine.digest()
    works.system.idle()
    assert works.text("order") == "abBA"
    works.system.restore(middle)
    assert works.system.machine.digest() == digest
    assert works.text("order") == "ab"
    works.system.idle()
    assert works.text("order") == "abBA"


def test_what_starts_itself_again_does_not_keep_the_host_from_idling(works: Calls) -> None:
    works.start_periodic()
    works.system.idle()
    assert works.count_periods() == 1
    works.system.idle(1.05)
    assert works.count_periods() == 11
    assert works.stop_periodic() == 1
    works.system.idle(1)
    assert works.count_periods() == 11


def test_what_queues_itself_without_a_pause_is_endless_where_the_host_idles(works: Calls) -> None:
    works.start_restless()
    works.system.idle()
    with pytest.raises(Stuck, match="there is no end of them: kworker"):
        works.system.idle(10)


def test_an_item_that_waits_for_itself_is_an_error(works: Calls) -> None:
    works.queue_selfish()
    with pytest.raises(Stuck, match=r"flush_work\(\) is called by work flush_myself.* for itself"):
        works.system.idle()


def test_draining_lets_items_queue_themselves_and_refuses_others(works: Calls) -> None:
    works.make_parallel(0)
    assert works.start_chain() == 5


def test_a_destroyed_queue_is_an_error_with_its_caller(works: Calls) -> None:
    works.make_parallel(0)
    works.destroy_own()
    with pytest.raises(
        ModuleError, match=r"queue_work\(0x[0-9a-f]+\): there is no such work queue, called from queue_on_own"
    ):
        works.queue_on_own()


def test_an_item_is_bound_to_a_cpu_and_others_are_not(c_module: Callable[..., Path]) -> None:
    from pkvm_emu.machine.profile import MachineProfile

    works = loaded(c_module(SOURCE, None, name="works"), "works", profile=MachineProfile(cpus=3))
    assert works["on_cpu"] == 0
    works.queue_on(2)
    works.system.idle()
    assert works["on_cpu"] == 2
    assert works.system.machine.current.index == 0
