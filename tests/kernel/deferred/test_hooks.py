"""Tracepoints, vendor hooks and static keys: registration by modules, firing from Python, the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calls import Calls, loaded, undone

from pkvm_emu.cli.report_deferred import deferred_facts, deferred_lines
from pkvm_emu.errors import UsageError

SOURCE = r"""
#include <linux/jump_label.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/tracepoint.h>
#include <linux/workqueue.h>

DECLARE_HOOK(android_vh_test, TP_PROTO(int a, int b), TP_ARGS(a, b));
DECLARE_RESTRICTED_HOOK(android_rvh_test, TP_PROTO(int *answer), TP_ARGS(answer), 1);

int sum, data_seen, order;
static void add(void *data, int a, int b) { sum += a + b; data_seen = (int)(long)data; order = order * 10 + 1; }
static void add_more(void *data, int a, int b) { order = order * 10 + 2; }
int hook(int data) { return register_trace_android_vh_test(add, (void *)(long)data); }
int unhook(int data) { return unregister_trace_android_vh_test(add, (void *)(long)data); }
int hook_first(void) { return tracepoint_probe_register_prio(&__tracepoint_android_vh_test, add_more, NULL, 20); }
int hook_nothing(void) { return tracepoint_probe_register(&__tracepoint_android_vh_test, NULL, NULL); }
int answer;
static void answer_it(void *data, int *where) { *where = 42; }
int hook_restricted(void) { return register_trace_android_rvh_test(answer_it, NULL); }
int is_on(void) { return __tracepoint_android_vh_test.key.enabled; }

/* what the generated code of trace_android_vh_test(a, b) does */
int trace_it(int a, int b)
{
	struct tracepoint_func *f = __tracepoint_android_vh_test.funcs;

	if (!_pkvm_emu_static_branch(&__tracepoint_android_vh_test.key))
		return 0;
	for (; f && f->func; f++)
		((void (*)(void *, int, int))f->func)(f->data, a, b);
	return 1;
}

int found;
static void look(struct tracepoint *tp, void *name)
{
	const char *a = tp->name, *b = name;

	while (*a && *a == *b)
		a++, b++;
	if (!*a && !*b)
		found++;
}
int look_for_task_newtask(void) { for_each_kernel_tracepoint(look, "task_newtask"); return found; }
int look_for_nonsense(void) { for_each_kernel_tracepoint(look, "no_such_thing"); return found; }

static DEFINE_STATIC_KEY_FALSE(mine);
int branch(void) { return static_branch_unlikely(&mine); }
int inc(void) { static_branch_inc(&mine); return 0; }
int dec(void) { static_branch_dec(&mine); return 0; }

static int on_reboot(struct notifier_block *nb, unsigned long action, void *data) { return 0; }
static struct notifier_block reboot_nb = { .notifier_call = on_reboot };
static void work_fn(struct work_struct *w) { }
static DECLARE_WORK(work, work_fn);
static DECLARE_DELAYED_WORK(later, work_fn);
static int __init hooks_init(void)
{
	schedule_work(&work);
	schedule_delayed_work(&later, 60 * 60 * 250);
	return register_reboot_notifier(&reboot_nb);
}
module_init(hooks_init);
"""


@pytest.fixture(scope="module", params=["14", "15", "16"])
def shared(request: pytest.FixtureRequest, c_module: Callable[..., Path]) -> Calls:
    return loaded(c_module(SOURCE, None, name="hooky", generation=request.param), "hooky")


@pytest.fixture
def hooky(shared: Calls) -> Iterator[Calls]:
    yield from undone(shared)


def test_a_probe_gets_its_data_and_what_python_fires(hooky: Calls) -> None:
    hooks = hooky.system.kernel.hooks
    assert hooks.fire("android_vh_test", 1, 2) == 0
    assert hooky.hook(7) == 0
    assert hooks.fire("android_vh_test", 30, 4) == 1
    assert (hooky["sum"], hooky["data_seen"]) == (34, 7)
    assert hooks.fired == {"android_vh_test": 1}


def test_probes_go_by_priority_and_twice_is_eexist(hooky: Calls) -> None:
    assert hooky.hook(1) == 0
    assert hooky.hook(1) == -17
    assert "WARNING" in hooky.log
    assert hooky.hook(2) == 0
    assert hooky.hook_first() == 0
    assert hooky.system.kernel.hooks.fire("android_vh_test", 0, 0) == 3
    assert hooky["order"] == 211


def test_a_probe_that_is_taken_away_is_not_called(hooky: Calls) -> None:
    hooky.hook(1)
    assert hooky.is_on() == 1
    assert hooky.unhook(1) == 0
    assert hooky.is_on() == 0
    assert hooky.unhook(1) == -2
    assert hooky.system.kernel.hooks.fire("android_vh_test", 1, 1) == 0
    assert hooky.hook_nothing() == -22


def test_compiled_code_comes_to_the_probes_while_there_are_any(hooky: Calls) -> None:
    assert hooky.trace_it(1, 2) == 0
    hooky.hook(5)
    assert hooky.trace_it(1, 2) == 1
    assert hooky["sum"] == 3
    hooky.unhook(5)
    assert hooky.trace_it(1, 2) == 0


def test_a_restricted_hook_answers_through_a_pointer(hooky: Calls) -> None:
    assert hooky.hook_restricted() == 0
    place = hooky.address("answer")
    assert hooky.system.kernel.hooks.fire("android_rvh_test", place) == 1
    assert hooky["answer"] == 42


def test_unknown_hooks_and_too_many_values_are_usage_errors(hooky: Calls) -> None:
    hooky.hook(1)
    with pytest.raises(
        UsageError, match=r"no module knows a tracepoint 'android_vh_tset' \(with probes: android_vh_test\)"
    ):
        hooky.system.kernel.hooks.fire("android_vh_tset")
    with pytest.raises(UsageError, match="seven values at most"):
        hooky.system.kernel.hooks.fire("android_vh_test", *range(8))


def test_tracepoints_of_the_kernel_are_found_by_name(hooky: Calls) -> None:
    assert hooky.look_for_nonsense() == 0
    assert hooky.look_for_task_newtask() == 1


def test_a_static_key_counts_and_patches_its_branches(hooky: Calls) -> None:
    assert hooky.branch() == 0
    hooky.inc()
    hooky.inc()
    assert hooky.branch() == 1
    hooky.dec()
    assert hooky.branch() == 1
    hooky.dec()
    assert hooky.branch() == 0
    hooky.dec()
    assert "jump label: negative count!" in hooky.log


def test_the_report_lists_hooks_notifiers_work_and_what_is_left(hooky: Calls) -> None:
    hooky.hook(1)
    hooky.system.kernel.hooks.fire("android_vh_test", 1, 2)
    text = "\n".join(deferred_lines(hooky.system))
    assert "  hook android_vh_test: add+0x0/" in text
    assert "  reboot notifier: on_reboot+0x0/" in text
    assert "  work done: work_fn+0x0/" in text
    assert "  hooks fired: android_vh_test 1" in text
    assert "  pending: timer later+0x" in text
    facts = deferred_facts(hooky.system)
    assert [entry["hook"] for entry in facts["hooks"]] == ["android_vh_test"]
    assert [entry["chain"] for entry in facts["notifiers"]] == ["reboot"]
    assert list(facts["work_done"].values()) == [1]


def test_a_system_without_deferred_work_reports_none() -> None:
    import pkvm_emu

    assert list(deferred_lines(pkvm_emu.boot())) == []
