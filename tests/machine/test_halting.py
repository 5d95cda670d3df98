"""A halt asked for by another thread: it comes between two blocks, where nothing is half done."""

from __future__ import annotations

import threading

import pytest
from bare import CODE, DATA, EL1H, Bare

from pkvm_emu.machine import watchdog

NODES = 512
#: Walks a list for ever, or for x10 nodes: x8 is the node, x9 counts.
WALK = "start: ldr x8, [x8]; add x9, x9, #1; cmp x9, x10; b.ne start; mov x0, x8; ret".replace("; ", "\n")


def walker() -> tuple[Bare, int]:
    """A machine with a list whose end leads to its beginning, and the code that walks it, covered."""
    bare = Bare()
    bare.engine.halt.cover(bare.va(CODE, 1), bare.va(CODE, 1) + 4096)
    start = bare.load(WALK, 1)["start"]
    for n in range(NODES):
        bare.ram.write_u64(bare.pa(DATA, 1) + 8 * n, bare.va(DATA, 1) + 8 * ((n + 1) % NODES))
    bare.enter(EL1H)
    bare.engine.write("x8", bare.va(DATA, 1))
    bare.engine.write("x9", 0)
    return bare, start


def test_a_load_into_its_own_address_register_is_executed_once() -> None:
    bare, pc = walker()
    engine = bare.engine
    engine.write("x10", 1 << 40)
    for _ in range(100):
        timer = threading.Timer(0.001, engine.halt.ask)
        timer.start()
        engine.start(pc)
        timer.join()
        engine.halt.withdraw()
        assert engine.read("x8") == bare.va(DATA, 1) + 8 * (engine.read("x9") % NODES)
        pc = engine.read("pc")
        assert pc == bare.va(CODE, 1)


def test_a_long_computation_that_the_watchdog_looked_at_has_the_right_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_INTERVAL_SECONDS", 0.004)
    bare, start = walker()
    done = threading.Event()
    halts: list[int] = []

    def look() -> None:
        while not done.wait(0.004):
            bare.core.watchdog.look()

    ask = bare.engine.halt.ask
    monkeypatch.setattr(bare.engine.halt, "ask", lambda: (halts.append(1), ask()))
    thread = threading.Thread(target=look)
    thread.start()
    try:
        bare.engine.write("x10", 20_000_000)
        assert bare.core.call(start)[0] == bare.va(DATA, 1) + 8 * (20_000_000 % NODES)
    finally:
        done.set()
        thread.join()
    assert halts


def test_a_halt_asked_for_in_a_hook_comes_at_the_end_of_the_block() -> None:
    bare = Bare()
    bare.engine.halt.cover(bare.va(CODE, 1), bare.va(CODE, 1) + 4096)
    labels = bare.load("start: mov x0, #7\nadd x0, x0, #1\nb next\nnext: add x0, x0, #1\nb .", 1)
    bare.enter(EL1H)
    bare.engine.hook_code(labels["start"], labels["start"], lambda _pc: bare.engine.halt.ask())
    bare.engine.start(labels["start"])
    assert (bare.engine.read("pc"), bare.engine.read("x0")) == (labels["next"], 8)


def test_a_halt_that_is_withdrawn_does_not_come() -> None:
    bare, start = walker()
    bare.engine.write("x10", 100)
    bare.engine.halt.ask()
    assert bare.engine.halt.is_asked
    bare.engine.halt.withdraw()
    assert bare.core.call(start)[0] == bare.va(DATA, 1) + 800


def test_a_halt_comes_before_the_first_block_too() -> None:
    bare, start = walker()
    bare.engine.halt.ask()
    bare.engine.start(start)
    assert (bare.engine.read("pc"), bare.engine.read("x9")) == (start, 0)
