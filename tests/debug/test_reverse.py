"""Going back: the same state at the same index, the last breakpoint and write before, and what the user changes on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Harness, go, monitor, send
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.debug.breakpoints import Breakpoint
from pkvm_emu.debug.flow import Act
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import STEP, Back, Killed, Request, Resume, Stop, StopKind
from pkvm_emu.debug.watchpoints import WRITE
from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, boot

MODULE = (
    "backwards",
    """
static const struct pkvm_module_ops *ops;
u64 counter;
u64 words[4];
int hyp_init(const struct pkvm_module_ops *given) { ops = given; return 0; }
static noinline u64 inner(u64 value) { counter += value; return counter; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	u64 i;
	switch (x[1]) {
	case 1:
		x[1] = ops->host_donate_hyp(x[2], 1, false);
		break;
	case 2:
		for (i = 0; i < x[2]; i++)
			inner(i);
		x[1] = counter;
		break;
	case 3:
		*(volatile u64 *)8 = 1;
		break;
	case 4:
		ops->memcpy(words, (void *)&counter, 8);
		break;
	default:
		x[1] = inner(x[2]);
	}
	x[0] = 0;
}
""",
)
ADD, DONATE, LOOP, FAULT, COPY = 0, 1, 2, 3, 4
LOOPS = 30_000


def el2(system: System, name: str) -> int:
    va = system.modules["backwards"].el2_symbol(name)
    assert va is not None
    return va


def calls(system: System, *arguments: tuple[int, int]) -> list[Act]:
    def one(pair: tuple[int, int]) -> Callable[[], str]:
        return lambda: f"{system.call('hyp_call', *pair).x1}"

    return [Act(f"call {pair}", one(pair)) for pair in arguments]


class Run:
    """A flow of calls that stops at its first instruction and is then driven by a function."""

    def __init__(self, system: System, *arguments: tuple[int, int]) -> None:
        self.harness = Harness(system, calls(system, *arguments))
        self.debugger = self.harness.debugger
        self.history = self.debugger.keep_history()
        self.system = system

    def drive(self, script: Iterator[Resume]) -> None:
        """Let a generator say how to go on at each stop; it looks at ``last`` for the stop. It must come to its end."""
        is_done = False

        def on_stop(stop: Stop) -> Resume:
            nonlocal is_done
            self.last = stop
            try:
                return next(script)
            except StopIteration:
                is_done = True
                raise Killed from None

        self.debugger.control.on_stop = on_stop
        self.debugger.control.interrupt("begin")
        self.debugger.flow.run(lambda: None)
        assert is_done or next(script, None) is None

    def digest(self) -> str:
        return self.system.machine.digest()


@pytest.fixture
def start(newest: System) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(*arguments: tuple[int, int]) -> Run:
        made.append(Run(newest, *arguments))
        return made[-1]

    yield make
    for run in made:
        run.debugger.control.detach()


def back(kind: Back, **more: int) -> Resume:
    return Resume(back=Request(kind, **more))


def test_each_step_is_undone_by_a_step_back(start: Callable[..., Run]) -> None:
    run = start((ADD, 5), (DONATE, 0x48000))
    forwards: list[tuple[int, int, str]] = []
    backwards: list[tuple[int, int, str]] = []

    def script() -> Iterator[Resume]:
        for _ in range(40):
            forwards.append((run.history.index, run.last.pc, run.digest()))
            yield Resume(default=STEP)
        forwards.append((run.history.index, run.last.pc, run.digest()))
        while len(backwards) < 40:
            yield back(Back.STEP)
            backwards.append((run.history.index, run.last.pc, run.digest()))

    run.drive(script())
    assert [index for index, _, _ in forwards] == list(range(41))
    assert backwards == forwards[-2::-1]


@settings(max_examples=8, deadline=None)
@given(
    moves=st.lists(st.one_of(st.integers(0, 3000), st.sampled_from(("step", "back", "steps"))), min_size=4, max_size=14)
)
def test_any_way_to_an_index_gives_the_same_state(
    moves: list[int | str], c_module: Callable[..., Path], walker: System
) -> None:
    before = walker.snapshot()
    run = Run(walker, (ADD, 5), (DONATE, 0x48000), (COPY, 0), (LOOP, 400))
    seen: dict[int, str] = {}
    checked = 0

    def script() -> Iterator[Resume]:
        nonlocal checked
        for move in moves:
            index = run.history.index
            digest = run.digest()
            checked += index in seen
            assert seen.setdefault(index, digest) == digest
            if move == "step":
                yield Resume(default=STEP)
            elif move == "back":
                yield back(Back.STEP)
            elif move == "steps":
                yield back(Back.STEP, count=17)
            else:
                assert isinstance(move, int)
                yield back(Back.GOTO, index=move)
                # There and away and there again.
                digest = run.digest()
                at = run.history.index
                yield back(Back.GOTO, index=at // 2)
                yield back(Back.GOTO, index=at)
                assert (run.history.index, run.digest()) == (at, digest)
                checked += 1

    try:
        run.drive(script())
    finally:
        run.debugger.control.detach()
        walker.restore(before)


@pytest.fixture(scope="module")
def walker(c_module: Callable[..., Path]) -> System:
    """A small machine, whose digest is quick."""
    module = c_module(el2=MODULE[1], name=MODULE[0])
    return boot("android16-6.12", [module], profile=MachineProfile(ram_size=96 << 20))


def test_going_on_from_the_past_ends_as_without_going_back(newest: System) -> None:
    before = newest.snapshot()
    for pair in ((ADD, 5), (LOOP, LOOPS)):
        newest.call("hyp_call", *pair)
    plain = newest.machine.digest()
    newest.restore(before)
    run = Run(newest, (ADD, 5), (LOOP, LOOPS))
    stops = 0

    def script() -> Iterator[Resume]:
        nonlocal stops
        for index in (900, 100, 200_000, 150_000, 10, 199_999):
            yield back(Back.GOTO, index=index)
            assert run.history.index == index
            stops += 1
        yield Resume()

    run.drive(script())
    assert stops == 6
    run.debugger.control.detach()
    assert newest.machine.digest() == plain


def test_the_last_breakpoint_before_is_found(start: Callable[..., Run]) -> None:
    run = start((ADD, 1), (ADD, 2), (ADD, 4))
    entry = el2(run.system, "inner")
    found: list[tuple[int, int]] = []
    hits: list[int] = []

    def script() -> Iterator[Resume]:
        run.debugger.control.breakpoints.add(Breakpoint(2, entry))
        for _ in range(3):
            yield Resume()
            hits.append(run.history.index)
        for _ in range(2):
            yield back(Back.CONTINUE)
            found.append((run.history.index, run.system.machine.engine.read("x0")))
            assert (run.last.kind, run.last.pc, run.last.el) == (StopKind.BREAKPOINT, entry, 2)
        yield back(Back.CONTINUE)
        assert (run.last.kind, run.history.index) == (StopKind.BEGIN, 0)
        yield back(Back.STEP)
        assert (run.last.kind, run.history.index) == (StopKind.BEGIN, 0)
        yield Resume()
        assert (run.last.kind, run.history.index) == (StopKind.BREAKPOINT, hits[0])

    run.drive(script())
    assert found == [(hits[1], 2), (hits[0], 1)]


def test_the_last_write_before_is_found_among_thousands(start: Callable[..., Run]) -> None:
    run = start((LOOP, LOOPS), (ADD, 7))
    entry, counter = el2(run.system, "inner"), el2(run.system, "counter")
    values: list[int] = []

    def script() -> Iterator[Resume]:
        memory = run.debugger.memory
        yield back(Back.GOTO, index=200_000)
        present = int.from_bytes(memory.read(counter, 8), "little")
        run.debugger.control.watchpoints.add(WRITE, counter, 8, memory.pieces(counter, 8) or ())
        for _ in range(3):
            yield back(Back.CONTINUE)
            assert run.last.kind is StopKind.WATCHPOINT
            assert run.last.watch == ("watch", counter)
            assert entry <= run.last.pc < entry + 64
            # Memory is as it was before the write; the next state of it is the one that came later.
            values.append(int.from_bytes(memory.read(counter, 8), "little"))
            assert values[-1] < present
            present = values[-1]

    run.drive(script())
    assert len(values) == 3
    n = next(n for n in range(LOOPS) if n * (n - 1) // 2 >= values[0])
    assert values == [k * (k - 1) // 2 for k in (n, n - 1, n - 2)]


def test_a_write_by_an_op_in_python_is_found_at_the_call(start: Callable[..., Run]) -> None:
    run = start((DONATE, 0x48000), (ADD, 1))
    stub = run.system.hyp.ops.stubs["host_donate_hyp"]
    texts: list[str] = []

    def script() -> Iterator[Resume]:
        run.debugger.control.breakpoints.add(Breakpoint(2, el2(run.system, "inner")))
        yield Resume()
        session = Session(run.debugger, run.last)
        index, digest = run.history.index, run.digest()
        for line in (
            "who owner 0x48000000",
            "who s2 0x48000000",
            "who pt 0x6c08000000 2",
            f"who {el2(run.system, 'words'):#x}",
        ):
            answer = session.debugger.monitor(session, line)
            assert not isinstance(answer, str)
            yield answer.resume
            texts.append(run.last.text)
            assert (run.history.index, run.digest()) == (index, digest)
        assert run.debugger.control.watchpoints.points == []

    run.drive(script())
    place = run.system.symbols.describe(stub + 4, 2)
    for text, what in zip(texts[:2], ("OWNED by HOST -> OWNED by HYP by host_donate_hyp", "0x48000000"), strict=True):
        assert what in text
        assert f"EL2 {place}" in text
        assert "at instruction " in text
        assert "host_donate_hyp" in text
    assert texts[3].endswith("not written since the history begins (instruction 0)")


def test_a_fault_can_be_gone_back_from(start: Callable[..., Run]) -> None:
    run = start((ADD, 3), (FAULT, 0))
    kinds: list[StopKind] = []

    def script() -> Iterator[Resume]:
        yield Resume()
        kinds.append(run.last.kind)
        at_error = run.history.index
        yield back(Back.STEP)
        kinds.append(run.last.kind)
        assert run.history.index == at_error - 1
        run.debugger.control.breakpoints.add(Breakpoint(2, el2(run.system, "inner")))
        yield back(Back.CONTINUE)
        kinds.append(run.last.kind)
        assert run.system.machine.engine.read("x0") == 3
        # Forwards again: the same end.
        yield Resume()
        kinds.append(run.last.kind)
        assert run.history.index == at_error
        yield Resume()

    run.drive(script())
    assert kinds == [StopKind.ERROR, StopKind.STEP, StopKind.BREAKPOINT, StopKind.ERROR]
    assert isinstance(run.debugger.flow.failure, PkvmEmuError)


def test_what_the_user_changes_stays_and_ends_the_recorded_future(start: Callable[..., Run]) -> None:
    run = start((ADD, 1), (ADD, 2))
    entry, counter = el2(run.system, "inner"), el2(run.system, "counter")
    seen: list[int] = []

    def script() -> Iterator[Resume]:
        run.debugger.control.breakpoints.add(Breakpoint(2, entry))
        yield Resume()
        first = run.history.index
        yield Resume()
        assert run.debugger.memory.read(counter, 8)[0] == 1
        yield back(Back.GOTO, index=first)
        run.debugger.registers.write(0, "x0", 40)
        yield Resume()
        seen.append(run.debugger.memory.read(counter, 8)[0])
        yield back(Back.GOTO, index=first - 1)
        yield Resume(default=STEP)
        seen.append(run.debugger.registers.read(0, "x0"))
        assert run.debugger.memory.write(counter, (100).to_bytes(8, "little"))
        yield Resume()
        seen.append(run.debugger.memory.read(counter, 8)[0])
        yield back(Back.GOTO, index=0)
        seen.append(run.debugger.memory.read(counter, 8)[0])

    run.drive(script())
    assert seen == [40, 40, 140, 0]


def test_writing_what_is_there_already_changes_nothing(start: Callable[..., Run]) -> None:
    run = start((ADD, 1))
    marks: list[object] = []

    def script() -> Iterator[Resume]:
        yield Resume(default=STEP)
        marks.append(run.history.mark())
        run.debugger.registers.write(0, "x3", run.debugger.registers.read(0, "x3"))
        marks.append(run.history.mark())

    run.drive(script())
    assert marks[0] == marks[1]


def test_a_saved_state_is_a_point_of_the_history(start: Callable[..., Run]) -> None:
    run = start((LOOP, 500))

    def script() -> Iterator[Resume]:
        session = Session(run.debugger, run.last)
        yield back(Back.GOTO, index=1000)
        monitor(session, "snap save here")
        digest = run.digest()
        yield back(Back.GOTO, index=2000)
        monitor(session, "snap load here")
        assert (run.history.index, run.digest()) == (1000, digest)
        yield back(Back.STEP)
        assert run.history.index == 999
        yield back(Back.GOTO, index=1500)
        # The run in which it was kept was left since, but the history leads there.
        answer = session.debugger.monitor(session, "snap load here")
        assert not isinstance(answer, str)
        yield answer.resume
        assert (run.history.index, run.digest()) == (1000, digest)
        yield back(Back.GOTO, index=1500)
        monitor(session, "snap save late")
        run.debugger.registers.write(0, "x20", 1)
        # That state lies on no way to the present any more: it begins a history of its own.
        monitor(session, "snap load late")
        yield back(Back.STEP)
        assert (run.last.kind, run.history.index) == (StopKind.BEGIN, 1500)

    run.drive(script())


def test_turns_of_several_cpus_are_gone_back_over(c_module: Callable[..., Path]) -> None:
    module = c_module(el2=MODULE[1], name=MODULE[0])
    system = boot("android16-6.12", [module], profile=MachineProfile(cpus=2, ram_size=96 << 20))
    number = system.function_id("hyp_call")
    act = Act("both", lambda: str(system.run_on({0: (number, ADD, 1), 1: (number, ADD, 2)})))
    harness = Harness(system, [act])
    harness.debugger.keep_history()
    history = harness.debugger.history
    assert history is not None
    seen: list[tuple[int, int, str]] = []
    script_done: list[bool] = []

    def on_stop(stop: Stop) -> Resume:
        return next(script)

    def moves() -> Iterator[Resume]:
        for index in (50, 120, 51, 50, 120):
            yield back(Back.GOTO, index=index)
            seen.append((history.index, system.machine.current.index, system.machine.digest()))
        script_done.append(True)
        while True:
            yield Resume()

    script = moves()
    harness.debugger.control.on_stop = on_stop
    harness.debugger.control.interrupt("begin")
    harness.debugger.flow.run(lambda: None)
    assert script_done
    assert [index for index, _, _ in seen] == [50, 120, 51, 50, 120]
    assert seen[3] == seen[0]
    assert seen[4] == seen[1]


def test_long_runs_keep_a_bounded_number_of_states(start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkvm_emu.debug.history._DISTANCE_NS", 50_000)
    monkeypatch.setattr("pkvm_emu.debug.history._SLICE", 2_000)
    monkeypatch.setattr("pkvm_emu.debug.history._MOST_CHECKPOINTS", 10)
    run = start((LOOP, LOOPS))
    counts: list[int] = []

    def script() -> Iterator[Resume]:
        for index in (200_000, 1000, 150_001, 199_999, 123_456):
            yield back(Back.GOTO, index=index)
            assert run.history.index == index
            counts.append(run.history.checkpoints)

    run.drive(script())
    assert max(counts) <= 10 + 1 + 8
    assert max(counts) > 5


def test_packets_go_back_only_with_a_history(newest: System) -> None:
    with Harness(newest) as harness:
        session = Session(harness.debugger, harness.debugger.control.make_stop(StopKind.STEP))
        assert send(session, "bs") == ""
        assert "Reverse" not in send(session, "qSupported:swbreak+")
        assert "--no-reverse" in monitor(session, "history")
        harness.debugger.keep_history()
        assert "ReverseStep+;ReverseContinue+" in send(session, "qSupported:swbreak+")
        assert go(session, "bc").back.kind is Back.CONTINUE
        assert go(session, "bs").back.kind is Back.STEP


def test_the_beginning_is_told_to_gdb(start: Callable[..., Run]) -> None:
    run = start((ADD, 1))
    replies: list[bytes] = []

    def script() -> Iterator[Resume]:
        yield back(Back.CONTINUE)
        session = Session(run.debugger, run.last)
        replies.append(session.stop_reply())

    run.drive(script())
    assert b"replaylog:begin" in replies[0]


def test_an_armed_command_is_performed_by_the_next_step(start: Callable[..., Run]) -> None:
    run = start((ADD, 1))
    seen: list[int] = []

    def script() -> Iterator[Resume]:
        yield back(Back.GOTO, index=100)
        session = Session(run.debugger, run.last)
        for line, packet in (
            ("rsi 3", "vCont;s:1"),
            ("goto 50", "vCont;c"),
            ("goto +7", "s"),
            ("rc", "vCont;s:1;c"),
        ):
            assert "the next step" in monitor(session, line)
            yield go(session, packet)
            seen.append(run.history.index)
        assert go(session, "vCont;s:1").of(0).single
        assert "1000000 instructions, not 0" in monitor(session, "rsi 0")
        assert "begins at instruction 0" in monitor(session, "goto -9")

    run.drive(script())
    assert seen == [97, 50, 57, 0]


def test_an_interrupt_ends_a_search(start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = start((LOOP, LOOPS))
    kinds: list[StopKind] = []

    def script() -> Iterator[Resume]:
        yield back(Back.GOTO, index=200_000)
        control = run.debugger.control
        keep = run.history.run

        def interrupted(pc: int, target: int | None = None) -> tuple[bool, str | None]:
            control.interrupt("test")
            return keep(pc, target)

        monkeypatch.setattr(run.history, "run", interrupted)
        yield back(Back.CONTINUE)
        kinds.append(run.last.kind)
        monkeypatch.undo()
        yield back(Back.GOTO, index=10)
        assert run.history.index == 10

    run.drive(script())
    assert kinds == [StopKind.INTERRUPT]


def test_detaching_counts_no_more(newest: System) -> None:
    harness = Harness(newest)
    harness.debugger.keep_history()
    assert newest.machine.engine.counter is not None
    harness.debugger.control.detach()
    assert newest.machine.engine.counter is None
    assert newest.call("hyp_call", ADD, 1).x1 == 1
