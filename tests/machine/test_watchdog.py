"""A guest that cannot go on ends with the reason and the place, in the same words every time."""

from __future__ import annotations

import pytest
from bare import CODE, DATA, EL1H, EL2H, RODATA, Bare

from pkvm_emu.machine import watchdog
from pkvm_emu.machine.core import Service, Stuck

LEVELS = pytest.mark.parametrize("level", [1, 2], ids=["EL1", "EL2"])
SPSR = {1: EL1H, 2: EL2H}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_GRACE_INSTRUCTIONS", 100_000)


def stuck(source: str, level: int = 1, budget: int | None = None, **registers: int) -> str:
    """What the run of ``source`` on a new machine ends with."""
    bare = Bare()
    bare.core.describe = lambda va, el: f"EL{el} code+{va - bare.va(CODE, el):#x}"
    bare.core.instruction_budget = budget
    labels = bare.load(source, level)
    bare.enter(SPSR[level])
    for name, value in registers.items():
        bare.engine.write(name, value)
    with pytest.raises(Stuck) as error:
        bare.core.run(labels["start"])
    assert bare.core.depth == 0
    return str(error.value)


@LEVELS
def test_an_endless_loop_is_shown_from_its_first_to_its_last_instruction(level: int) -> None:
    source = "start: mov x0, #0\nnop\nagain: add x0, x0, #1\nnop\nb again"
    text = stuck(source, level)
    assert text == (
        f"endless loop between EL{level} code+0x8 and EL{level} code+0x10: "
        "no exception and no call to the hypervisor or kernel"
    )
    assert stuck(source, level) == text


@LEVELS
def test_wfi_with_nothing_to_wake_the_cpu_names_the_instruction(level: int) -> None:
    text = stuck("start: nop\nnop\nwfi\nnop", level)
    assert text == f"WFI at EL{level} code+0x8 with nothing to wake the CPU"


@LEVELS
@pytest.mark.parametrize(
    "load",
    ["ldaxrb w1, [x0]", "ldaxrh w1, [x0]", "ldaxr w1, [x0]", "ldaxr x1, [x0]"],
    ids=["8 bits", "16 bits", "32 bits", "64 bits"],
)
def test_a_lock_that_nobody_frees_is_named(level: int, load: str) -> None:
    # A ticket lock as the hypervisor's headers have it: wait with WFE until the owner is the ticket.
    source = f"start: mov x1, #1\nstr x1, [x0]\nsevl\nagain: wfe\n{load}\ncbnz x1, again\nret"
    lock = Bare.va(DATA, level) + 0x40
    text = stuck(source, level, x0=lock)
    place = f"EL{level} code+{lock - Bare.va(CODE, level):#x}"
    assert text.startswith(f"waits for ever on the lock at {place}, which nobody holds that could free it")
    assert f"(loop EL{level} code+0xc .. EL{level} code+0x14)" in text
    assert stuck(source, level, x0=lock) == text


def test_an_abort_whose_handler_repairs_nothing_ends_after_a_number_of_times() -> None:
    bare = Bare()
    bare.core.describe = lambda va, el: f"EL{el} code+{va - bare.va(CODE, el):#x}"
    bare.load("eret", 2)
    bare.engine.write("vbar_el1", bare.va(CODE, 1))
    labels = bare.load(".space 0x200\neret\n.space 0x7c\nstart: nop\nstr x0, [x0]", 1)
    bare.enter(EL1H)
    address = bare.va(RODATA, 1)
    bare.engine.write("x0", address)
    with pytest.raises(Stuck) as error:
        bare.core.run(labels["start"])
    assert str(error.value) == (
        f"the same abort was taken 1000 times in a row at EL1 code+0x284: ESR_EL1 0x9600004f, FAR {address:#x}; "
        "its handler returns without repairing it"
    )


def test_repeating_an_abort_a_few_times_is_fine() -> None:
    """A handler that repairs at the hundredth time."""
    bare = Bare()
    stub = bare.stub("repair", 1)
    times: list[int] = []

    def repair() -> None:
        times.append(1)
        if len(times) == 100:
            bare.el1.protect(bare.va(RODATA, 1), 4096, 0, 1 << 7)

    bare.core.add_service(stub, Service("repair", 1, 0, repair))
    bare.engine.write("vbar_el1", bare.va(CODE, 1))
    labels = bare.load(
        ".space 0x200\nstp x29, x30, [sp, #-16]!\nblr x9\nldp x29, x30, [sp], #16\neret\n.space 0x70\n"
        "start: str x0, [x0]\nhvc #5",
        1,
    )
    bare.enter(EL1H)
    bare.engine.write("x0", bare.va(RODATA, 1))
    bare.engine.write("x9", stub)
    bare.core.run(labels["start"])
    assert len(times) == 100
    assert bare.ram.read_u64(bare.pa(RODATA, 1)) == bare.va(RODATA, 1)


@pytest.mark.parametrize("call", ["hvc #0", "blr x9"], ids=["hypercalls", "service calls"])
def test_a_loop_of_calls_ends_with_the_event_budget(call: str) -> None:
    def run() -> str:
        bare = Bare()
        bare.core.describe = lambda va, el: f"EL{el} code+{va - bare.va(CODE, el):#x}"
        bare.core.event_budget = 500
        stub = bare.stub("nothing", 1)
        bare.core.add_service(stub, Service("nothing", 1, 0, lambda: None))
        bare.load(".space 0x400\neret", 2)
        bare.engine.write("vbar_el2", bare.va(CODE, 2))
        labels = bare.load(f"start: {call}\nb start", 1)
        bare.enter(EL1H)
        bare.engine.write("x9", stub)
        with pytest.raises(Stuck) as error:
            bare.core.run(labels["start"])
        assert bare.core.events == 501
        return str(error.value)

    text = run()
    assert text.startswith("500 exceptions and calls without coming to an end, the last at EL1 ")
    assert run() == text


def test_the_event_budget_is_for_each_run_from_python() -> None:
    bare = Bare()
    bare.core.event_budget = 3
    for _ in range(5):
        bare.take("svc #0", EL1H)
    assert bare.core.events == 10


def test_a_long_run_that_makes_progress_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than many looks of the watchdog, no exception in it, but service calls."""
    monkeypatch.setattr(watchdog, "_GRACE_INSTRUCTIONS", 3_000_000)
    bare = Bare()
    stub = bare.stub("count", 1)
    counted: list[int] = []
    bare.core.add_service(stub, Service("count", 1, 0, lambda: counted.append(1)))
    labels = bare.load(
        """
start:  mov x19, x30
        mov x20, #60
again:  movz x1, #16, lsl #16
1:      sub x1, x1, #1
        cbnz x1, 1b
        blr x9
        sub x20, x20, #1
        cbnz x20, again
        ret x19
""",
        1,
    )
    bare.enter(EL1H)
    bare.engine.write("x9", stub)
    bare.core.call(labels["start"])
    assert len(counted) == 60


@LEVELS
def test_a_spent_instruction_budget_stops_at_the_same_place(level: int) -> None:
    source = "start: mov x0, #0\nagain: add x0, x0, #1\nnop\nadd x2, x2, x0\nb again"
    text = stuck(source, level, budget=10_000)
    assert text.startswith(f"the budget of 10000 instructions is spent at EL{level} code+0x")
    assert stuck(source, level, budget=10_000) == text


def test_the_instruction_budget_counts_over_all_calls_and_restores_with_the_machine() -> None:
    bare = Bare()
    bare.core.instruction_budget = 1_000
    labels = bare.load("start: mov x1, #100\n1: sub x1, x1, #1\ncbnz x1, 1b\nret", 1)
    snapshot = bare.machine.snapshots.take()
    for _ in range(4):
        bare.call(labels["start"])
    executed = bare.core.watchdog.executed
    assert 800 <= executed <= 900
    with pytest.raises(Stuck, match="the budget of 1000 instructions is spent"):
        bare.call(labels["start"])
    bare.machine.snapshots.restore(snapshot)
    assert bare.core.watchdog.executed == 0
    for _ in range(4):
        bare.call(labels["start"])
    assert bare.core.watchdog.executed == executed


def test_a_machine_that_got_stuck_can_be_restored_and_used() -> None:
    bare = Bare()
    labels = bare.load("start: mov x0, #7\nret\nloop: b loop", 1)
    bare.enter(EL1H)
    snapshot = bare.machine.snapshots.take()
    with pytest.raises(Stuck):
        bare.core.call(labels["loop"])
    bare.machine.snapshots.restore(snapshot)
    assert bare.core.call(labels["start"])[0] == 7
