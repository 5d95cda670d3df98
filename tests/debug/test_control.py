"""Run control: steps, breakpoints and watchpoints at both levels, without changing what is executed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from harness import Harness, monitor

from pkvm_emu.debug.breakpoints import Breakpoint
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import STEP, Action, Killed, Resume, Stop, StopKind
from pkvm_emu.debug.watchpoints import ACCESS, READ, WRITE
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot

MODULE = (
    "stepped",
    """
static const struct pkvm_module_ops *ops;
u64 counter;
u64 words[4];
int hyp_init(const struct pkvm_module_ops *given) { ops = given; return 0; }
static noinline u64 inner(u64 value) { counter += value; return counter; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	switch (x[1]) {
	case 1:
		x[1] = ops->host_donate_hyp(x[2], 1, false);
		break;
	case 2:
		for (;;)
			__asm__ volatile("" ::: "memory");
	case 3:
		*(volatile u64 *)8 = 1;
		break;
	case 4:
		ops->memcpy(words, (void *)&counter, 8);
		break;
	case 5: {
		u64 *node = words;

		words[0] = (u64)&words[1];
		words[1] = 77;
		__asm__ volatile("ldr %0, [%0]\\n\\tldr %0, [%0]" : "+r"(node) :: "memory");
		x[1] = (u64)node;
		break;
	}
	default:
		x[1] = inner(x[2]);
	}
	x[0] = 0;
}
""",
)
NOTHING = 0


@pytest.fixture
def harness(newest: System) -> Iterator[Harness]:
    with Harness(newest) as found:
        yield found


def step_until_end(session: Session, stop: Stop) -> Resume:
    return Resume({}, STEP)


def el2(system: System, name: str) -> int:
    va = system.modules["stepped"].el2_symbol(name)
    assert va is not None
    return va


def always(function: object) -> list[object]:
    return [function] * 100_000


def test_steps_go_through_the_hypercall_and_back(harness: Harness) -> None:
    system = harness.system
    harness.script = always(step_until_end)
    harness.debugger.control.interrupt("begin")
    assert system.call("hyp_call", NOTHING, 5).x1 == 5
    levels = [stop.el for stop in harness.stops]
    changes = [el for el, before in zip(levels, [0, *levels]) if el != before]
    assert changes == [1, 2, 1]
    places = [stop.pc for stop in harness.stops]
    for place in (system.hyp.entry("hyp_vectors") + 0x400, el2(system, "hyp_call"), el2(system, "inner")):
        assert place in places
    assert all(stop.kind is StopKind.STEP for stop in harness.stops[1:])


def test_a_run_under_the_debugger_leaves_the_same_state(newest: System) -> None:
    before = newest.snapshot()
    newest.call("hyp_call", NOTHING, 5)
    plain = newest.machine.digest()
    newest.restore(before)
    with Harness(newest) as harness:
        harness.script = always(step_until_end)
        harness.debugger.control.interrupt("begin")
        newest.call("hyp_call", NOTHING, 5)
        assert len(harness.stops) > 100
    assert newest.machine.digest() == plain


def test_an_op_in_python_is_one_step(harness: Harness) -> None:
    system = harness.system
    stub = system.hyp.ops.stubs["host_donate_hyp"]
    harness.script = always(step_until_end)
    harness.debugger.control.interrupt("begin")
    assert system.call("hyp_call", 1, 0x48000).x1 == 0
    places = [stop.pc for stop in harness.stops]
    at = places.index(stub)
    assert places[at : at + 3] == [stub, stub + 4, stub + 8]
    assert system.pages.at(0x4800_0000).owner.name == "HYP"


def test_a_range_step_stops_outside_of_the_range(harness: Harness) -> None:
    system = harness.system
    start = el2(system, "inner")
    harness.debugger.control.breakpoints.add(Breakpoint(2, start))
    harness.at(lambda session, stop: Resume({}, Action(True, start, start + 8)))
    harness.stop_first(lambda session, stop: Resume())
    system.call("hyp_call", NOTHING, 1)
    assert [stop.pc for stop in harness.stops[1:]] == [start, start + 8]


def test_a_breakpoint_belongs_to_its_level(harness: Harness) -> None:
    system = harness.system
    entry = system.kernel.entry("host_hvc")
    handler = el2(system, "hyp_call")
    points = harness.debugger.control.breakpoints
    wrong = [points.add(Breakpoint(2, entry)), points.add(Breakpoint(1, handler))]
    right = [points.add(Breakpoint(1, entry)), points.add(Breakpoint(2, handler))]
    harness.stop_first(lambda session, stop: None)
    system.call("hyp_call", NOTHING, 1)
    assert [(stop.el, stop.pc) for stop in harness.stops if stop.kind is StopKind.BREAKPOINT] == [
        (1, entry),
        (2, handler),
    ]
    assert [point.hits for point in wrong] == [0, 0]
    assert [point.hits for point in right] == [1, 1]


def test_a_level_is_found_for_each_address(harness: Harness) -> None:
    system, memory = harness.system, harness.debugger.memory
    assert memory.level_of(el2(system, "hyp_call")) == 2
    assert memory.level_of(system.hyp.entry("handle_trap")) == 2
    assert memory.level_of(system.hyp.ops.stubs["puts"]) == 2
    assert memory.level_of(system.kernel.entry("host_hvc")) == 1
    memory.level = 2
    assert memory.level_of(system.kernel.entry("host_hvc")) == 2


def test_a_breakpoint_fires_each_time_and_not_twice(harness: Harness) -> None:
    harness.debugger.control.breakpoints.add(Breakpoint(2, el2(harness.system, "inner")))
    harness.stop_first(lambda session, stop: None)
    for value in range(3):
        harness.system.call("hyp_call", NOTHING, value)
    assert len([stop for stop in harness.stops if stop.kind is StopKind.BREAKPOINT]) == 3


@pytest.mark.parametrize(("kind", "hits"), [(WRITE, 1), (READ, 2), (ACCESS, 3)])
def test_a_watchpoint_stops_before_the_access(harness: Harness, kind: str, hits: int) -> None:
    system = harness.system
    counter = el2(system, "counter")
    contents: list[bytes] = []

    def watch(session: Session, stop: Stop) -> None:
        pieces = session.debugger.memory.pieces(counter, 8)
        assert pieces is not None
        session.debugger.control.watchpoints.add(kind, counter, 8, pieces)

    def look(session: Session, stop: Stop) -> None:
        contents.append(session.debugger.memory.read(counter, 8))

    harness.at(look, look, look, look)
    harness.stop_first(watch)
    assert system.call("hyp_call", NOTHING, 7).x1 == 7
    found = [stop for stop in harness.stops if stop.kind is StopKind.WATCHPOINT]
    inner = el2(system, "inner")
    assert len(found) <= hits
    assert found
    assert all(stop.watch == (kind, counter) for stop in found)
    assert inner <= found[0].pc < inner + 0x40
    if kind == WRITE:
        assert contents == [bytes(8)]


@pytest.mark.parametrize("has_history", [False, True], ids=["plain", "with history"])
def test_a_load_into_its_own_address_register_is_watched_and_executed_once(harness: Harness, has_history: bool) -> None:
    words = el2(harness.system, "words")
    bases: list[int] = []

    def watch(session: Session, stop: Stop) -> None:
        pieces = session.debugger.memory.pieces(words, 16)
        assert pieces is not None
        session.debugger.control.watchpoints.add(READ, words, 16, pieces)

    def look(session: Session, stop: Stop) -> None:
        engine = harness.system.machine.engine
        word = harness.system.machine.core.fetch(stop.pc)
        assert word is not None
        assert word >> 5 & 31 == word & 31
        bases.append(engine.read(f"x{word & 31}"))

    if has_history:
        harness.debugger.keep_history()
    harness.at(look, look)
    harness.stop_first(watch)
    assert harness.system.call("hyp_call", 5).x1 == 77
    assert [stop.kind for stop in harness.stops[1:]] == [StopKind.WATCHPOINT] * 2
    assert bases == [words, words + 8]


def test_a_watchpoint_sees_what_python_writes(harness: Harness, newest: System) -> None:
    # The state of a page is in the hypervisor's vmemmap, which the op writes from Python.
    pa = newest.hyp.vmemmap.entry(0x4800_0000)

    def watch(session: Session, stop: Stop) -> None:
        session.debugger.control.watchpoints.add(WRITE, pa, 4, [(pa, 4)])

    harness.stop_first(watch)
    newest.call("hyp_call", 1, 0x48000)
    found = [stop for stop in harness.stops if stop.kind is StopKind.WATCHPOINT]
    assert found
    assert "host_donate_hyp" in found[0].text


def test_an_endless_loop_is_interrupted(harness: Harness) -> None:
    control = harness.debugger.control
    done = threading.Event()

    def interrupt() -> None:
        time.sleep(0.1)
        while not done.wait(0.01):
            control.interrupt("interrupted")

    def leave(session: Session, stop: Stop) -> Resume:
        done.set()
        raise Killed

    harness.at(leave)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(Killed):
            harness.system.call("hyp_call", 2)
    finally:
        done.set()
        thread.join()
    start = el2(harness.system, "hyp_call")
    assert harness.stops[-1].kind is StopKind.INTERRUPT
    assert start <= harness.stops[-1].pc < start + 0x200
    assert harness.system.machine.core.depth == 0


def test_an_error_stops_where_it_comes_up_and_then_ends_the_run(harness: Harness) -> None:
    depths: list[int] = []
    harness.at(lambda session, stop: depths.append(session.debugger.system.machine.core.depth))
    with pytest.raises(PkvmEmuError) as raised:
        harness.system.call("hyp_call", 3)
    assert [stop.kind for stop in harness.stops] == [StopKind.ERROR]
    assert harness.stops[0].text == str(raised.value)
    assert depths == [1]


def test_hypercalls_stop_at_three_places(harness: Harness) -> None:
    system = harness.system
    harness.stop_first(lambda session, stop: monitor(session, "break hvc hyp_call") and None)
    system.hvc(5)
    system.call("hyp_call", NOTHING, 6)
    found = [stop for stop in harness.stops if stop.kind is StopKind.EVENT]
    entry = system.kernel.entry("host_hvc")
    assert [(stop.el, stop.pc) for stop in found] == [(1, entry), (2, el2(system, "hyp_call")), (1, entry + 4)]
    assert [stop.text.rpartition(": ")[2].split(",")[0] for stop in found] == [
        "before it",
        "at its handler",
        "back at EL1",
    ]
    assert "x1=0x6" in found[2].text


def test_the_hypervisors_own_hypercalls_stop_too(harness: Harness) -> None:
    harness.stop_first(lambda session, stop: monitor(session, "break hvc") and None)
    harness.system.hvc(harness.system.generation.hypercalls["host_share_hyp"], 0x48000)
    found = [stop for stop in harness.stops if stop.kind is StopKind.EVENT]
    assert [stop.el for stop in found] == [1, 2, 1]
    assert all("host_share_hyp" in stop.text for stop in found)


def test_a_kept_state_is_gone_back_to(harness: Harness) -> None:
    system = harness.system
    counter = el2(system, "counter")
    harness.debugger.control.breakpoints.add(Breakpoint(2, el2(system, "inner")))
    seen: list[int] = []

    def save(session: Session, stop: Stop) -> Resume:
        assert "kept" in monitor(session, "snap save")
        return Resume({}, STEP)

    def on(session: Session, stop: Stop) -> Resume:
        return Resume({}, STEP)

    def load(session: Session, stop: Stop) -> None:
        seen.append(int.from_bytes(session.debugger.memory.read(counter, 8), "little"))
        assert "back at state" in monitor(session, "snap load")
        seen.append(int.from_bytes(session.debugger.memory.read(counter, 8), "little"))
        seen.append(session.debugger.registers.read(0, "pc"))

    harness.at(save, *[on] * 12, load)
    harness.stop_first(lambda session, stop: None)
    assert system.call("hyp_call", NOTHING, 9).x1 == 9
    assert seen == [9, 0, el2(system, "inner")]


def test_a_state_of_a_call_that_returned_is_refused(harness: Harness) -> None:
    harness.stop_first(lambda session, stop: monitor(session, "snap save a") and None)
    harness.system.call("hyp_call", NOTHING, 1)
    answers: list[str] = []
    harness.stop_first(lambda session, stop: answers.append(monitor(session, "snap load a")))
    harness.system.call("hyp_call", NOTHING, 1)
    assert "in a call from Python that is not the present one" in answers[0]


def test_cpus_take_the_same_turns_under_the_debugger(booted: object, newest: System, c_module: object) -> None:
    path = c_module(el2=MODULE[1], name=MODULE[0], generation="android16-6.12")  # type: ignore[operator]  # mypy: fixture
    system = boot(16, [path], profile=MachineProfile(cpus=2))
    start = system.snapshot()
    calls = {0: ("hyp_call", NOTHING, 3), 1: ("hyp_call", NOTHING, 4)}
    plain = system.run_on(calls, seed=7)
    digest = system.machine.digest()
    system.restore(start)
    with Harness(system) as harness:
        harness.debugger.control.breakpoints.add(Breakpoint(2, el2(system, "inner")))
        harness.stop_first(lambda session, stop: None)
        assert system.run_on(calls, seed=7) == plain
        assert system.machine.digest() == digest
        found = [stop for stop in harness.stops if stop.kind is StopKind.BREAKPOINT]
        assert [stop.cpu for stop in found] in ([0, 1], [1, 0])


def test_a_step_is_that_of_the_cpu_that_was_told(c_module: object) -> None:
    path = c_module(el2=MODULE[1], name=MODULE[0], generation="android16-6.12")  # type: ignore[operator]  # mypy: fixture
    system = boot(16, [path], profile=MachineProfile(cpus=2))
    with Harness(system) as harness:
        harness.at(*[lambda session, stop: Resume({1: STEP})] * 5)
        harness.stop_first(lambda session, stop: Resume({1: STEP}))
        system.run_on({0: ("hyp_call", NOTHING, 3), 1: ("hyp_call", NOTHING, 4)}, seed=3)
        assert {stop.cpu for stop in harness.stops[1:6]} == {1}


def test_without_a_debugger_nothing_is_hooked(newest: System) -> None:
    with Harness(newest) as harness:
        harness.stop_first(lambda session, stop: monitor(session, "break hvc") and None)
        newest.call("hyp_call", NOTHING, 1)
        count = len(harness.stops)
    newest.call("hyp_call", NOTHING, 1)
    assert len(harness.stops) == count
    core = newest.machine.core
    assert core.control is None
    assert core.on_result is None
