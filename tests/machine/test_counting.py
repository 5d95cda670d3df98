"""The instruction counter: exact whatever ends a run, and exact to stop at."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.machine.counting import InstructionCounter
from pkvm_emu.machine.engine import BusError, Engine
from pkvm_emu.machine.memory import make_ram

BASE = 0x4000_0000
NOP, HVC, SELF = 0xD503201F, 0xD4000002, 0x14000000
#: add x1, x1, #1; sub x0, x0, #1; cbnz x0, .-8; hvc #0
LOOP = (0x91000421, 0xD1000400, 0xB5FFFFC0, HVC)
#: str x1, [x2]; add x1, x1, #1; hvc #0
STORE = (0xF9000041, 0x91000421, HVC)


@pytest.fixture
def engine() -> Engine:
    ram = make_ram(BASE, 1 << 21)
    found = Engine(ram)
    found.set_interrupt_handler(lambda _handle, _intno, _user: found.stop())
    found.set_pstate(0x3C5)
    return found


def load(engine: Engine, *words: int) -> None:
    for n, word in enumerate(words):
        engine.ram.write_u32(BASE + 4 * n, word)
    engine.flush_code()
    engine.counter = InstructionCounter(engine)


def test_a_run_counts_what_it_executed(engine: Engine) -> None:
    load(engine, *LOOP)
    engine.write("x0", 1000)
    engine.start(BASE)
    assert engine.counter is not None
    assert engine.counter.index == 3 * 1000 + 1


@settings(max_examples=40, deadline=None)
@given(limits=st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_limits_are_exact_wherever_they_fall_in_a_block(limits: list[int]) -> None:
    ram = make_ram(BASE, 1 << 21)
    engine = Engine(ram)
    engine.set_interrupt_handler(lambda _handle, _intno, _user: engine.stop())
    engine.set_pstate(0x3C5)
    load(engine, *LOOP)
    counter = engine.counter
    assert counter is not None
    engine.write("x0", 10_000)
    engine.write("pc", BASE)
    done = 0
    for limit in limits:
        done += limit
        counter.limit = done
        engine.start(engine.read("pc"))
        assert counter.index == done
        assert engine.read("pc") == BASE + 4 * (done % 3)
        assert engine.read("x1") == (done + 2) // 3


def test_a_stop_before_an_instruction_does_not_count_it(engine: Engine) -> None:
    load(engine, *LOOP)
    counter = engine.counter
    assert counter is not None
    engine.write("x0", 10)
    seen: list[int] = []

    def reached(pc: int) -> None:
        seen.append(counter.now)
        engine.stop(before=True)

    engine.hook_code(BASE + 4, BASE + 4, reached)
    engine.start(BASE)
    assert (counter.index, engine.read("pc"), seen) == (1, BASE + 4, [1])


def test_a_stop_at_a_store_does_not_count_it(engine: Engine) -> None:
    load(engine, *STORE)
    counter = engine.counter
    assert counter is not None
    engine.write("x2", BASE + 0x1000)
    engine.hook_memory(BASE + 0x1000, BASE + 0x1007, lambda is_write, pa, size: engine.stop(before=True))
    engine.start(BASE)
    assert (counter.index, engine.read("pc")) == (0, BASE)


def test_an_exception_counts_and_an_access_to_nothing_does_not(engine: Engine) -> None:
    load(engine, NOP, HVC)
    counter = engine.counter
    assert counter is not None
    engine.start(BASE)
    assert counter.index == 2
    load(engine, *STORE)
    counter = engine.counter
    engine.write("x2", 0x1000)
    with pytest.raises(BusError):
        engine.start(BASE)
    assert counter.index == 0


def test_a_limit_that_is_reached_executes_nothing(engine: Engine) -> None:
    load(engine, *LOOP)
    counter = engine.counter
    assert counter is not None
    counter.limit = 0
    engine.write("x0", 10)
    engine.start(BASE)
    assert (counter.index, engine.read("pc"), engine.read("x1")) == (0, BASE, 0)


def test_an_endless_loop_ends_at_its_limit(engine: Engine) -> None:
    load(engine, SELF)
    counter = engine.counter
    assert counter is not None
    counter.limit = 12_345
    engine.start(BASE)
    assert counter.index == 12_345
