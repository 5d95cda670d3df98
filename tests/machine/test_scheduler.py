"""Several CPUs in turns: exact lengths, one order a seed, locks that spin, deadlocks that are found."""

from __future__ import annotations

import pytest
from bare import DATA, EL1H, EL2H, Bare

from pkvm_emu.errors import UsageError
from pkvm_emu.machine.core import Service, Settled, Stuck
from pkvm_emu.machine.scheduler import Scheduler

LEVELS = pytest.mark.parametrize("level", [1, 2], ids=["EL1", "EL2"])
SPSR = {1: EL1H, 2: EL2H}
SEEDS = range(6)
ROUNDS = 40

#: increment(word, times): a load, an add and a store, unprotected.
RACE = """
race:   ldr     x2, [x0]
        add     x2, x2, #1
        str     x2, [x0]
        subs    x1, x1, #1
        b.ne    race
        ret
"""
#: locked(lock, word, times): load and store exclusive, test and set.
EXCLUSIVE = """
locked: mov     w5, #1
again:  ldaxr   w4, [x0]
        cbnz    w4, again
        stxr    w4, w5, [x0]
        cbnz    w4, again
        ldr     x6, [x1]
        add     x6, x6, #1
        str     x6, [x1]
        stlr    wzr, [x0]
        subs    x2, x2, #1
        b.ne    locked
        ret
"""
#: The same with a ticket lock as the LSE form of the hypervisor's has it: next in the high half, owner in the low one.
TICKET = """
locked: mov     w5, #0x10000
        .word   0xb8a50004              // ldadda w5, w4, [x0]: the assembler has no LSE
        eor     w6, w4, w4, ror #16
        cbz     w6, mine
        sevl
wait:   wfe
        ldaxrh  w7, [x0]
        eor     w6, w7, w4, lsr #16
        cbnz    w6, wait
mine:   ldr     x6, [x1]
        add     x6, x6, #1
        str     x6, [x1]
        ldrh    w7, [x0]
        add     w7, w7, #1
        stlrh   w7, [x0]
        subs    x2, x2, #1
        b.ne    locked
        ret
"""
#: take_two(first, second, times): both locks, in that order.
BOTH = """
both:   mov     w5, #1
one:    ldaxr   w4, [x0]
        cbnz    w4, one
        stxr    w4, w5, [x0]
        cbnz    w4, one
two:    ldaxr   w4, [x1]
        cbnz    w4, two
        stxr    w4, w5, [x1]
        cbnz    w4, two
        stlr    wzr, [x1]
        stlr    wzr, [x0]
        subs    x2, x2, #1
        b.ne    both
        ret
"""


def pair(level: int, source: str, cpus: int = 2) -> tuple[Bare, int]:
    """A machine whose CPUs are all at one level, with a function; the function's address."""
    bare = Bare(cpus=cpus)
    start = min(bare.load(source, level).values())
    for index in reversed(range(cpus)):
        bare.machine.switch_to(index)
        bare.enter(SPSR[level])
    return bare, start


def words(bare: Bare, level: int) -> tuple[int, int]:
    """VA of two words of data on cache lines of their own."""
    return bare.va(DATA, level), bare.va(DATA, level) + 64


# Turns


def test_a_turn_has_as_many_instructions_as_it_is_given() -> None:
    bare, pc = pair(1, "spin: add x0, x0, #1\n b spin\n", cpus=1)
    bare.engine.write("x0", 0)
    done = 0
    for length in (1, 7, 64, 1, 1, 30, 2, 63):
        assert bare.core.advance(bare.engine.read("pc") if done else pc, length) is Settled.NOTHING
        done += length
        assert bare.engine.read("x0") == -(-done // 2)


def test_instructions_that_ran_before_without_turns_are_counted_too() -> None:
    bare, pc = pair(1, "count: subs x0, x0, #1\n b.ne count\n ret\n", cpus=1)
    bare.core.call(pc, 100)
    bare.engine.write("x0", 100)
    assert bare.core.advance(pc, 20) is Settled.NOTHING
    assert bare.engine.read("x0") == 90
    bare.core.call(pc, 100)
    assert bare.core.advance(bare.engine.read("pc"), 1) is Settled.NOTHING
    assert bare.engine.read("x0") == 89


@LEVELS
def test_an_unprotected_update_of_two_cpus_loses_increments_and_the_same_ones_each_time(level: int) -> None:
    bare, race = pair(level, RACE)
    word = words(bare, level)[0]
    sums = []
    for seed in (*SEEDS, *SEEDS):
        bare.ram.write_u64(bare.pa(DATA, level), 0)
        Scheduler(bare.machine, seed, longest_turn=8).run({0: (race, (word, ROUNDS)), 1: (race, (word, ROUNDS))})
        sums.append(bare.ram.read_u64(bare.pa(DATA, level)))
    half = len(SEEDS)
    assert sums[:half] == sums[half:]
    assert all(ROUNDS <= total < 2 * ROUNDS for total in sums)
    assert len(set(sums)) > 1


def test_each_cpu_keeps_its_registers_and_results() -> None:
    bare, start = pair(1, "start: mov x9, #200\nloop: add x0, x0, x1\n subs x9, x9, #1\n b.ne loop\n ret\n", cpus=4)
    calls = {cpu: (start, (1000 * cpu, cpu + 1)) for cpu in range(4)}
    results = Scheduler(bare.machine, seed=3).run(calls)
    assert {cpu: registers[:2] for cpu, registers in results.items()} == {
        cpu: (1000 * cpu + 200 * (cpu + 1), cpu + 1) for cpu in range(4)
    }
    assert bare.machine.current.index == 0


@pytest.mark.parametrize("in_hook", [True, False], ids=["in the hook", "in the run loop"])
def test_a_service_is_one_step_of_its_cpu(in_hook: bool) -> None:
    bare, _ = pair(1, "nothing: ret\n")
    stub = bare.stub("record", 1)
    log: list[tuple[int, int]] = []

    def record(value: int) -> int:
        log.append((bare.machine.current.index, value))
        return value + 1

    bare.core.add_service(stub, Service("record", 1, 1, record, in_hook))
    start = bare.load(
        "start: mov x20, x30\n mov x21, #5\n ldr x9, place\nloop: blr x9\n subs x21, x21, #1\n b.ne loop\n ret x20\n"
        f".balign 8\nplace: .quad {stub:#x}\n",
        1,
    )["start"]
    results = Scheduler(bare.machine, 1, longest_turn=3).run({0: (start, (0,)), 1: (start, (100,))})
    assert (results[0][0], results[1][0]) == (5, 105)
    assert [value for cpu, value in log if cpu == 0] == [0, 1, 2, 3, 4]
    assert [value for cpu, value in log if cpu == 1] == [100, 101, 102, 103, 104]
    assert [cpu for cpu, _ in log] != sorted(cpu for cpu, _ in log)


def test_a_cpu_that_does_not_exist_is_refused() -> None:
    bare, start = pair(1, "start: ret\n")
    with pytest.raises(UsageError, match="there is no CPU 2: the machine has CPUs 0 to 1"):
        Scheduler(bare.machine).run({2: (start, ())})
    assert bare.machine.current.index == 0
    with pytest.raises(ValueError, match="at least"):
        Scheduler(bare.machine, longest_turn=0)


# Locks


@LEVELS
@pytest.mark.parametrize("source", [EXCLUSIVE, TICKET], ids=["exclusive", "LSE ticket"])
@pytest.mark.parametrize("longest_turn", [3, 64])
def test_a_contended_lock_spins_and_no_increment_is_lost(level: int, source: str, longest_turn: int) -> None:
    bare, locked = pair(level, source)
    lock, word = words(bare, level)
    for seed in SEEDS:
        bare.ram.write_u64(bare.pa(DATA, level) + 64, 0)
        Scheduler(bare.machine, seed, longest_turn).run(
            {0: (locked, (lock, word, ROUNDS)), 1: (locked, (lock, word, ROUNDS))}
        )
        assert bare.ram.read_u64(bare.pa(DATA, level) + 64) == 2 * ROUNDS


def test_locks_taken_in_opposite_order_are_a_deadlock_that_names_cpus_and_locks() -> None:
    bare, both = pair(2, BOTH)
    bare.core.describe = lambda va, el: {words(bare, 2)[0]: "lock A", words(bare, 2)[1]: "lock B"}.get(va, f"{va:#x}")
    one, two = words(bare, 2)
    messages = []
    for seed in SEEDS:
        bare.ram.write(bare.pa(DATA, 2), bytes(128))
        with pytest.raises(Stuck) as error:
            Scheduler(bare.machine, seed, 16).run({0: (both, (one, two, 500)), 1: (both, (two, one, 500))})
        messages.append(str(error.value))
    for message in messages:
        assert message.startswith("deadlock: CPU 0 waits for lock B in the loop ")
        assert "; CPU 1 waits for lock A in the loop " in message
    # In one order they do not hinder each other for long.
    bare.ram.write(bare.pa(DATA, 2), bytes(128))
    bare.machine.switch_to(0)
    again, both = pair(2, BOTH)
    one, two = words(again, 2)
    Scheduler(again.machine, 0, 16).run({0: (both, (one, two, 500)), 1: (both, (one, two, 500))})


def test_a_lock_that_nobody_frees_is_reported_while_another_cpu_computes_to_its_end() -> None:
    source = EXCLUSIVE + "count: subs x0, x0, #1\n b.ne count\n ret\n"
    bare, locked = pair(1, source)
    lock, word = words(bare, 1)
    bare.ram.write_u64(bare.pa(DATA, 1), 1)
    count = bare.load(source, 1)["count"]
    with pytest.raises(Stuck, match=r"a CPU waits for ever: CPU 0 waits for EL1 0x[0-9a-f]+ in the loop"):
        Scheduler(bare.machine).run({0: (locked, (lock, word, 1)), 1: (count, (200_000,))})
    bare.machine.switch_to(1)
    assert bare.engine.read("x0") == 0


def test_a_long_computation_is_not_taken_for_a_deadlock() -> None:
    bare, start = pair(1, "count: subs x0, x0, #1\n b.ne count\n mov x0, #9\n ret\n")
    results = Scheduler(bare.machine, 0).run({0: (start, (400_000,)), 1: (start, (300_000,))})
    assert (results[0][0], results[1][0]) == (9, 9)


def test_cpus_that_all_wait_for_events_are_stuck() -> None:
    bare, start = pair(1, "start: wfi\n ret\n")
    with pytest.raises(Stuck, match=r"every CPU waits for an event that nothing sends \(CPU 0 at .*, CPU 1 at "):
        Scheduler(bare.machine).run({0: (start, ()), 1: (start, ())})


def test_an_endless_series_of_calls_has_an_end() -> None:
    bare, _ = pair(1, "nothing: ret\n")
    stub = bare.stub("again", 1)
    bare.core.add_service(stub, Service("again", 1, 0, lambda: None))
    start = bare.load(f"start: ldr x9, place\nloop: blr x9\n b loop\n.balign 8\nplace: .quad {stub:#x}\n", 1)["start"]
    bare.core.event_budget = 2_000
    with pytest.raises(Stuck, match=r"2000 exceptions and calls without coming to an end .*CPU 0 at .*CPU 1 at"):
        Scheduler(bare.machine).run({0: (start, ()), 1: (start, ())})


def test_the_instruction_budget_counts_the_turns_of_all_cpus() -> None:
    bare, start = pair(1, "count: subs x0, x0, #1\n b.ne count\n ret\n")
    bare.core.instruction_budget = 5_000
    with pytest.raises(Stuck, match="the budget of 5000 instructions is spent"):
        Scheduler(bare.machine).run({0: (start, (100_000,)), 1: (start, (100_000,))})
