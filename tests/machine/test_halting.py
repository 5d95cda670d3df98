"""A halt asked for by another thread: it comes between two blocks, where nothing is half done."""

from __future__ import annotations

import platform
import sys
import threading

import pytest
import unicorn
from bare import CODE, DATA, EL1H, Bare
from unicorn import arm64_const as arm64
from unicorn import x86_const as x86

from pkvm_emu.machine import halting, watchdog

NODES = 512
HAS_CHECK = halting.native_check() is not None
#: Walks a list for ever, or for x10 nodes: x8 is the node, x9 counts.
WALK = "start: ldr x8, [x8]; add x9, x9, #1; cmp x9, x10; b.ne start; mov x0, x8; ret".replace("; ", "\n")


@pytest.fixture(autouse=True, params=["native", "portable"])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        monkeypatch.setattr(halting, "native_check", lambda: None)


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


def test_linux_hosts_have_the_fast_kind() -> None:
    has_code = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    assert has_code == HAS_CHECK


@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_check_goes_to_the_engine_only_if_its_flag_is_set(machine: str, is_set: bool) -> None:
    code, flag, stop, back = 0x10000, 0x20000, 0x30000, 0x40000
    if machine == "aarch64":
        cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        pc, argument = arm64.UC_ARM64_REG_PC, arm64.UC_ARM64_REG_X3
        cpu.reg_write(arm64.UC_ARM64_REG_X30, back)
    else:
        cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        pc, argument = x86.UC_X86_REG_RIP, x86.UC_X86_REG_RCX
        cpu.mem_map(0x50000, 0x1000)
        cpu.mem_write(0x50800, back.to_bytes(8, "little"))
        cpu.reg_write(x86.UC_X86_REG_RSP, 0x50800)
    for page in (code, flag, stop, back):
        cpu.mem_map(page, 0x1000)
    cpu.mem_write(code, halting._CHECKS[machine] + stop.to_bytes(8, "little"))
    cpu.mem_write(flag, bytes((is_set,)))
    cpu.reg_write(argument, flag)
    cpu.ctl_exits_enabled(True)
    cpu.ctl_set_exits([stop, back])
    cpu.emu_start(code, 0)
    assert cpu.reg_read(pc) == (stop if is_set else back)
