"""Kernel threads, wait queues, completions and sleeping locks as modules use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import Calls, loaded, undone

from pkvm_emu.machine.core import Stuck

SOURCE = r"""
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/semaphore.h>
#include <linux/smp.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

char order[64];
static int used;
static void note(char c) { order[used++] = c; }

/* a thread that works until it is stopped */
static struct task_struct *thread;
int rounds, saw_own_task, thread_cpu = -1;
static int loop(void *data)
{
	saw_own_task = current == thread;
	while (!kthread_should_stop()) {
		rounds++;
		thread_cpu = smp_processor_id();
		if (kthread_should_park())
			kthread_parkme();
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule_timeout(msecs_to_jiffies(100));
		__set_current_state(TASK_RUNNING);
	}
	return 40 + (int)(long)data;
}
int start(int n) { thread = kthread_run(loop, (void *)(long)n, "loop/%d", n); return IS_ERR(thread); }
int create(void) { thread = kthread_create(loop, NULL, "never"); return 0; }
int bind(int cpu) { kthread_bind(thread, cpu); wake_up_process(thread); return 0; }
int stop(void) { return kthread_stop(thread); }
int kick(void) { return wake_up_process(thread); }
int park(void) { return kthread_park(thread); }
int unpark(void) { kthread_unpark(thread); return 0; }

static int deaf(void *data)
{
	for (;;)
		msleep(1000);
}
int start_deaf(void) { thread = kthread_run(deaf, NULL, "deaf"); return 0; }

/* producer and consumer over a wait queue */
static DECLARE_WAIT_QUEUE_HEAD(queue);
int available, consumed, timeouts;
static int consume(void *data)
{
	while (!kthread_should_stop()) {
		wait_event(queue, available || kthread_should_stop());
		if (available) {
			available--;
			consumed++;
		}
	}
	return 0;
}
int start_consumer(void) { thread = kthread_run(consume, NULL, "consumer"); return 0; }
int produce(int n) { available += n; wake_up(&queue); return 0; }
int produce_silently(int n) { available += n; return 0; }
int wait_with_timeout(int ms) { return wait_event_timeout(queue, available, msecs_to_jiffies(ms)); }
int wait_for_ever(void) { wait_event(queue, available); return 0; }
static void produce_later(struct work_struct *w) { produce(1); }
static DECLARE_DELAYED_WORK(producer, produce_later);
int produce_after(int ms) { return schedule_delayed_work(&producer, msecs_to_jiffies(ms)); }

/* completions */
static DECLARE_COMPLETION(done);
static void finish(struct work_struct *w) { msleep(20); complete(&done); }
static DECLARE_WORK(finisher, finish);
int wait_done(void) { schedule_work(&finisher); wait_for_completion(&done); return 0; }
int wait_done_timeout(int ms) { return wait_for_completion_timeout(&done, msecs_to_jiffies(ms)); }
int wait_never(void) { wait_for_completion(&done); return 0; }

/* two work items and one mutex */
static DEFINE_MUTEX(lock);
static struct workqueue_struct *wq;
static void holder_work(struct work_struct *w) { mutex_lock(&lock); note('h'); msleep(20); note('H'); mutex_unlock(&lock); }
static void waiter_work(struct work_struct *w) { note('w'); mutex_lock(&lock); note('W'); mutex_unlock(&lock); }
static DECLARE_WORK(holder, holder_work);
static DECLARE_WORK(waiter, waiter_work);
int contend(void) { schedule_work(&holder); schedule_work(&waiter); flush_work(&waiter); return mutex_is_locked(&lock); }

static DEFINE_SEMAPHORE_COUNT(empty, 0);
static void give(struct work_struct *w) { msleep(8); up(&empty); }
static DECLARE_WORK(giver, give);
int take_given(void) { schedule_work(&giver); down(&empty); return 1; }
int take_timeout(void) { return down_timeout(&empty, msecs_to_jiffies(20)); }

/* AB/BA */
static DEFINE_MUTEX(a);
static DEFINE_MUTEX(b);
static void ab(struct work_struct *w) { mutex_lock(&a); msleep(4); mutex_lock(&b); mutex_unlock(&b); mutex_unlock(&a); }
static void ba(struct work_struct *w) { mutex_lock(&b); msleep(4); mutex_lock(&a); mutex_unlock(&a); mutex_unlock(&b); }
static DECLARE_WORK(work_ab, ab);
static DECLARE_WORK(work_ba, ba);
int deadlock(void) { schedule_work(&work_ab); schedule_work(&work_ba); flush_work(&work_ab); return 0; }

/* a worker */
static struct kthread_worker *worker;
static struct kthread_work first, second;
static struct kthread_delayed_work third;
static void do_first(struct kthread_work *w) { note('1'); msleep(10); note('!'); }
static void do_second(struct kthread_work *w) { note('2'); }
int make_worker(void)
{
	worker = kthread_create_worker(0, "w/%s", "x");
	kthread_init_work(&first, do_first);
	kthread_init_work(&second, do_second);
	kthread_init_delayed_work(&third, do_second);
	return IS_ERR(worker);
}
int queue_both(void) { return kthread_queue_work(worker, &first) + kthread_queue_work(worker, &second); }
int queue_again(void) { return kthread_queue_work(worker, &second); }
int queue_third(void) { return kthread_queue_delayed_work(worker, &third, msecs_to_jiffies(50)); }
int flush_second(void) { kthread_flush_work(&second); return 0; }
int destroy_worker(void) { kthread_destroy_worker(worker); return 0; }

static int __init threads_init(void) { return 0; }
module_init(threads_init);
"""


@pytest.fixture(scope="module", params=["14", "16"])
def shared(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> Calls:
    return loaded(c_module(SOURCE, None, name="threads", generation=request.param), "threads")


@pytest.fixture
def threads(shared: Calls) -> Iterator[Calls]:
    yield from undone(shared)


def test_a_thread_runs_sleeps_and_is_stopped_with_its_result(threads: Calls) -> None:
    assert threads.start(2) == 0
    assert threads["rounds"] == 0
    threads.system.idle(1.05)
    assert threads["rounds"] == 11
    assert threads["saw_own_task"] == 1
    assert threads.stop() == 42
    threads.system.idle(1)
    assert threads["rounds"] == 11


def test_waking_a_thread_ends_its_sleep(threads: Calls) -> None:
    threads.start(0)
    threads.system.kernel.run_ready()
    assert threads["rounds"] == 1
    assert threads.kick() == 1
    threads.system.kernel.run_ready()
    assert threads["rounds"] == 2


def test_a_thread_that_never_ran_is_stopped_with_eintr(threads: Calls) -> None:
    threads.create()
    threads.system.idle(1)
    assert threads["rounds"] == 0
    assert threads.stop() == -4


def test_stopping_a_thread_that_does_not_listen_is_a_hung_task(threads: Calls) -> None:
    threads.start_deaf()
    threads.system.kernel.run_ready()
    with pytest.raises(
        Stuck, match=r"init\[1\] is blocked for more than 120 s: stop\+.* waits for the end of the thread deaf\["
    ):
        threads.stop()


def test_a_parked_thread_goes_on_when_it_is_unparked(threads: Calls) -> None:
    threads.start(1)
    threads.system.kernel.run_ready()
    assert threads.park() == 0
    before = threads["rounds"]
    threads.system.idle(1)
    assert threads["rounds"] == before
    threads.unpark()
    threads.system.idle(0.35)
    assert threads["rounds"] == before + 3
    assert threads.stop() == 41


def test_a_consumer_takes_what_a_wake_up_announces(threads: Calls) -> None:
    threads.start_consumer()
    threads.system.idle()
    threads.produce_silently(1)
    threads.system.idle()
    assert threads["consumed"] == 0
    threads.produce(2)
    threads.system.idle()
    assert threads["consumed"] == 3


def test_a_wait_with_a_timeout_says_what_is_left(threads: Calls) -> None:
    assert threads.wait_with_timeout(100) == 0
    threads.produce_after(40)
    assert 13 <= threads.wait_with_timeout(100) <= 16
    assert threads.wait_with_timeout(100) == 25


def test_a_wait_that_nothing_ends_names_waiter_queue_and_the_others(threads: Calls) -> None:
    expected = r"init\[1\] waits for ever: wait_for_ever\+.* waits for wait queue queue\+0x0/.*nothing can wake it"
    with pytest.raises(Stuck, match=expected):
        threads.wait_for_ever()
    threads.start_consumer()
    with pytest.raises(Stuck, match=r"waits for completion done\+.*\(consumer\[\d+\] waits for wait queue queue"):
        threads.wait_never()


def test_a_completion_is_completed_by_work_that_sleeps(threads: Calls) -> None:
    start = threads.system.kernel.uptime_ns()
    assert threads.wait_done() == 0
    assert threads.system.kernel.uptime_ns() - start >= 20_000_000
    assert threads.wait_done_timeout(12) == 0


def test_a_mutex_is_waited_for_until_its_holder_has_slept(threads: Calls) -> None:
    assert threads.contend() == 0
    assert threads.text("order") == "hwHW"


def test_a_semaphore_is_given_by_another_task_or_times_out(threads: Calls) -> None:
    assert threads.take_given() == 1
    assert threads.take_timeout() == -62


def test_two_tasks_that_wait_for_each_other_are_named_with_their_locks(threads: Calls) -> None:
    with pytest.raises(Stuck) as caught:
        threads.deadlock()
    text = str(caught.value)
    assert "waits for work ab" in text
    assert "waits for mutex b" in text
    assert "(taken at ba+" in text
    assert "waits for mutex a" in text


def test_a_worker_does_one_work_after_the_other(threads: Calls) -> None:
    assert threads.make_worker() == 0
    assert threads.queue_both() == 2
    assert threads.queue_again() == 0
    assert threads.queue_third() == 1
    threads.flush_second()
    assert threads.text("order") == "1!2"
    threads.system.idle()
    assert threads.text("order") == "1!22"
    threads.destroy_worker()
    assert not threads.system.kernel.part_made("Kthreads").flags


def test_threads_are_bound_to_cpus(c_module: Callable[..., Path]) -> None:
    from pkvm_emu.machine.profile import MachineProfile

    threads = loaded(c_module(SOURCE, None, name="threads"), "threads", profile=MachineProfile(cpus=2))
    threads.create()
    threads.bind(1)
    threads.system.idle(0.5)
    assert threads["thread_cpu"] == 1
    assert threads["rounds"] == 5


def test_the_same_run_is_the_same_every_time(c_module: Callable[..., Path]) -> None:
    digests = set()
    for _ in range(2):
        threads = loaded(c_module(SOURCE, None, name="threads"), "threads")
        threads.start(1)
        threads.contend()
        threads.system.idle(0.5)
        digests.add(threads.system.machine.digest())
    assert len(digests) == 1
