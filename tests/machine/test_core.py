"""Services, nested calls, code that is patched through an alias, and the deterministic counter."""

from __future__ import annotations

import pytest
from bare import ALIAS, CODE, DATA, EL1H, EL2H, Bare

from pkvm_emu.machine.core import Service

HVC64, PAGE_STUB_2 = 0x16, 0x900
LEVELS = pytest.mark.parametrize("level", [1, 2], ids=["EL1", "EL2"])
SPSR = {1: EL1H, 2: EL2H}


@pytest.fixture
def bare() -> Bare:
    return Bare()


def adder(level: int, in_hook: bool = True) -> Service:
    return Service("add", level, 2, lambda a, b: a + b, in_hook)


# Services


@LEVELS
@pytest.mark.parametrize("in_hook", [True, False], ids=["in the hook", "in the run loop"])
def test_a_service_takes_and_returns_registers(bare: Bare, level: int, in_hook: bool) -> None:
    stub = bare.stub("add", level)
    bare.core.add_service(stub, adder(level, in_hook))
    assert bare.call(stub, 40, 2, 7, pstate=SPSR[level])[:3] == (42, 2, 7)
    assert bare.core.el == level


@pytest.mark.parametrize(
    ("result", "registers"),
    [(None, (1, 2, 3)), (-1, (2**64 - 1, 2, 3)), ((7, 8), (7, 8, 3)), ((7, -8, 9), (7, 2**64 - 8, 9)), ((), (1, 2, 3))],
)
def test_a_service_sets_as_many_registers_as_it_returns(bare: Bare, result: object, registers: tuple[int, ...]) -> None:
    stub = bare.stub("answer", 1)
    bare.core.add_service(stub, Service("answer", 1, 0, lambda: result))  # type: ignore[arg-type, return-value]
    assert bare.call(stub, 1, 2, 3)[:3] == registers


def test_a_service_immediate_elsewhere_is_the_guests_own_hvc(bare: Bare) -> None:
    bare.core.add_service(bare.stub("add", 1), adder(1))
    entry = bare.take("hvc #0x8000", EL1H)
    assert (entry.el, entry.ec, entry.iss) == (2, HVC64, 0x8000)


@LEVELS
def test_a_service_is_refused_at_the_other_level(bare: Bare, level: int) -> None:
    stub = bare.stub("add", level)
    bare.core.add_service(stub, adder(3 - level))
    bare.enter(SPSR[level])
    bare.core.run(stub)
    assert (bare.entry().el, bare.entry().ec) == (2, HVC64)


def test_a_service_is_honoured_at_exactly_its_address(bare: Bare) -> None:
    # What is registered is one address; a stub 4 bytes further on is somebody else's.
    stub = bare.stub("add", 1)
    bare.core.add_service(stub - 4, adder(1))
    bare.enter(EL1H)
    bare.core.run(stub)
    assert bare.entry().ec == HVC64


class Refused(Exception):
    pass


@pytest.mark.parametrize("in_hook", [True, False], ids=["in the hook", "in the run loop"])
def test_the_error_of_a_service_reaches_the_caller_and_the_machine_goes_on(bare: Bare, in_hook: bool) -> None:
    def refuse() -> None:
        raise Refused("no")

    stub = bare.stub("refuse", 1)
    bare.core.add_service(stub, Service("refuse", 1, 0, refuse, in_hook))
    with pytest.raises(Refused, match="no"):
        bare.call(stub)
    assert bare.core.depth == 0
    bare.core.add_service(stub, adder(1))
    assert bare.call(stub, 1, 2)[0] == 3


def test_each_service_call_is_reported_once_with_its_arguments(bare: Bare) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []
    bare.core.on_service = lambda service, args: seen.append((service.name, args))
    stub = bare.stub("add", 1)
    bare.core.add_service(stub, adder(1))
    bare.call(stub, 3, 4, 5)
    assert ("add", (3, 4)) in seen
    assert [name for name, _ in seen] == ["add", "return to Python from EL1"]


# Calls


@LEVELS
def test_a_call_leaves_the_callers_registers_flags_and_stack_alone(bare: Bare, level: int) -> None:
    labels = bare.load(
        """
start:  mov x0, #1
        mov x18, #2
        mov x19, #3
        mov x29, #4
        sub sp, sp, #0x100
        subs xzr, xzr, xzr
        ret
""",
        level,
    )
    bare.enter(SPSR[level])
    for number in range(31):
        bare.engine.write(f"x{number}", 0x1000 + number)
    bare.engine.write("nzcv", 0xA << 28)
    bare.engine.write("pc", bare.va(CODE, level) + 0x40)
    before = bare.engine.batch(*[f"x{n}" for n in range(31)], "sp", "nzcv", "pc").snapshot()
    assert bare.core.call(labels["start"], 9)[0] == 1
    assert bare.engine.batch(*[f"x{n}" for n in range(31)], "sp", "nzcv", "pc").snapshot() == before


def test_a_service_that_calls_the_guest_nests(bare: Bare) -> None:
    """factorial(n) = n * factorial(n - 1), every other level of it in Python."""
    labels = bare.load(
        """
factorial:
        cbz x0, 1f
        stp x29, x30, [sp, #-32]!
        str x0, [sp, #16]
        sub x0, x0, #1
        blr x1
        ldr x9, [sp, #16]
        mul x0, x0, x9
        ldp x29, x30, [sp], #32
        ret
1:      mov x0, #1
        ret
""",
        1,
    )
    stub = bare.stub("factorial", 1)
    depths: list[int] = []

    def factorial(n: int) -> int:
        depths.append(bare.core.depth)
        return bare.core.call(labels["factorial"], n, stub)[0]

    bare.core.add_service(stub, Service("factorial", 1, 1, factorial, in_hook=False))
    assert bare.call(stub, 12)[0] == 479001600
    assert depths == list(range(1, 14))
    assert bare.core.depth == 0


def test_an_error_in_a_nested_call_ends_all_of_them(bare: Bare) -> None:
    labels = bare.load("start: stp x29, x30, [sp, #-16]!\nblr x0\nldp x29, x30, [sp], #16\nret", 1)
    outer, inner = bare.stub("outer", 1), bare.stub("inner", 1, PAGE_STUB_2)

    def refuse() -> None:
        raise Refused("inside")

    bare.core.add_service(inner, Service("inner", 1, 0, refuse))
    bare.core.add_service(outer, Service("outer", 1, 0, lambda: bare.core.call(labels["start"], inner)[0], False))
    with pytest.raises(Refused):
        bare.call(labels["start"], outer)
    assert bare.core.depth == 0
    bare.core.add_service(inner, Service("inner", 1, 0, lambda: 5))
    assert bare.call(labels["start"], outer)[0] == 5


def test_a_call_may_cross_levels_and_come_back(bare: Bare) -> None:
    """EL1 code makes an HVC; the EL2 vector answers with ERET; the call returns at EL1."""
    bare.load("add x0, x0, #1\neret", 2)
    bare.engine.write("vbar_el2", bare.va(CODE, 2) - 0x400)
    labels = bare.load("start: hvc #0\nhvc #1\nret", 1)
    assert bare.call(labels["start"], 40)[0] == 42


# Code patching

_PATCH = """
value:  mov x0, #1
        ret
start:  stp x29, x30, [sp, #-16]!
        ldr w9, [x2]
        str w9, [x2]                    // the alias is in the TLB before the code is translated
        bl value
        mov x19, x0
        str w1, [x2]
        dsb sy
{maintenance}
        dsb sy
        isb
        bl value
        add x0, x0, x19, lsl #8
        ldp x29, x30, [sp], #16
        ret
"""
_MOV_X0_2 = 0xD2800040


@LEVELS
@pytest.mark.parametrize(
    "maintenance",
    [".word 0xd50b7523", ".word 0xd508751f", ".word 0xd508711f"],  # ic ivau, x3; ic iallu; ic ialluis
    ids=["IC IVAU", "IC IALLU", "IC IALLUIS"],
)
def test_code_written_through_an_alias_runs_after_cache_maintenance(bare: Bare, level: int, maintenance: str) -> None:
    labels = bare.load(_PATCH.format(maintenance=maintenance), level)
    alias = bare.va(ALIAS, level) + labels["value"] - bare.va(CODE, level)
    result = bare.call(labels["start"], 0, _MOV_X0_2, alias, labels["value"], pstate=SPSR[level])[0]
    assert result == 2 + (1 << 8)


@LEVELS
def test_without_maintenance_the_patch_may_go_unseen(bare: Bare, level: int) -> None:
    """What makes the test above one of the maintenance and not of the engine."""
    labels = bare.load(_PATCH.format(maintenance="nop"), level)
    alias = bare.va(ALIAS, level) + labels["value"] - bare.va(CODE, level)
    result = bare.call(labels["start"], 0, _MOV_X0_2, alias, labels["value"], pstate=SPSR[level])[0]
    assert result == 1 + (1 << 8)


def test_code_patched_from_python_runs_at_once(bare: Bare) -> None:
    labels = bare.load("value: mov x0, #1\nret", 1)
    assert bare.call(labels["value"])[0] == 1
    bare.machine.patch_code(bare.pa(CODE, 1), _MOV_X0_2.to_bytes(4, "little"))
    assert bare.call(labels["value"])[0] == 2


# The counter

_READ_TWICE = """
start:  .word {first:#x}
        mov x2, #1000
1:      sub x2, x2, #1
        cbnz x2, 1b
        .word {second:#x}
        mrs x2, CNTFRQ_EL0
        ret
"""
_COUNTERS = {"CNTPCT_EL0": 0xD53BE020, "CNTVCT_EL0": 0xD53BE040, "CNTPCTSS_EL0": 0xD53BE0A0, "CNTVCTSS_EL0": 0xD53BE0C0}


def read_twice(level: int, counter: str) -> tuple[int, ...]:
    bare = Bare()
    bare.engine.write_sysreg("CNTHCTL_EL2", 3 << 10)
    bare.engine.write_sysreg("CNTFRQ_EL0", 62_500_000)
    word = _COUNTERS[counter]
    labels = bare.load(_READ_TWICE.format(first=word, second=word | 1), level)
    bare.core.hook_counter_reads([labels["start"], labels["start"] + 16])
    return bare.call(labels["start"], pstate=SPSR[level])[:3]


@LEVELS
@pytest.mark.parametrize("counter", _COUNTERS)
def test_the_counter_is_the_machines_own(level: int, counter: str) -> None:
    first, second, frequency = read_twice(level, counter)
    assert 0 < first < second < 10_000
    assert frequency == 62_500_000
    assert read_twice(level, counter) == (first, second, frequency)


def test_a_delay_loop_on_the_counter_ends(bare: Bare) -> None:
    labels = bare.load(
        """
start:  mrs x1, CNTVCT_EL0
        add x1, x1, x0
again:  mrs x2, CNTVCT_EL0
        cmp x2, x1
        b.lo again
        ret
""",
        2,
    )
    bare.core.hook_counter_reads([labels["start"], labels["again"]])
    before = bare.core.ticks
    bare.call(labels["start"], 100_000, pstate=EL2H)
    assert 100_000 <= bare.core.ticks - before < 100_000 + 1000


def test_a_counter_hook_does_not_touch_what_is_at_the_address_later(bare: Bare) -> None:
    labels = bare.load("start: mrs x0, CNTVCT_EL0\nret", 1)
    bare.core.hook_counter_reads([labels["start"]])
    assert bare.call(labels["start"])[0]
    bare.engine.write_sysreg("TPIDR_EL1", 0x77)
    labels = bare.load("start: mrs x0, TPIDR_EL1\nret", 1)
    assert bare.call(labels["start"])[0] == 0x77
    labels = bare.load("start: mrs x0, CNTFRQ_EL0\nret", 1)
    bare.engine.write_sysreg("CNTFRQ_EL0", 1234)
    assert bare.call(labels["start"])[0] == 1234


def test_the_same_run_takes_the_same_ticks_and_exceptions() -> None:
    def run() -> tuple[int, int, str]:
        bare = Bare()
        bare.take("mov x1, #5\nstr x1, [x0]\nhvc #1", EL1H, x0=bare.va(DATA, 1))
        bare.take("brk #1", EL1H)
        bare.take("svc #1", EL1H)
        return bare.core.ticks, bare.core.exceptions, bare.machine.digest()

    first = run()
    assert first == run()
    assert first[1] == 3
