"""Snapshots of the bare machine: a tree of states, each of which comes back to the last bit, on every kind of RAM."""

from __future__ import annotations

from typing import Any

import pytest
from bare import DATA, EL1H, EL2H, Bare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkvm_emu.errors import EmulatorError
from pkvm_emu.machine import machine as machine_module
from pkvm_emu.machine.core import Service
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.memory import CopyRam, CowRam, make_ram
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.machine.state import Journal, State, StateDict, StateList, canonical

KINDS = [CowRam, CopyRam] if isinstance(make_ram(0, 4096), CowRam) else [CopyRam]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def ram_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.setattr(machine_module, "make_ram", request.param)
    return request.param


@pytest.fixture
def bare(ram_kind: type) -> Bare:
    bare = Bare()
    assert type(bare.ram) is ram_kind
    return bare


class Counter(State):
    """A service with every kind of field."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal, "counter")
        self.value = 0
        self.names: StateDict[str, int] = StateDict(journal, "counter.names")
        self.log: StateList[int] = StateList(journal, "counter.log")


def test_registers_memory_counters_and_state_come_back(bare: Bare) -> None:
    counter = Counter(bare.machine.journal)
    bare.enter(EL1H)
    bare.engine.write("x5", 5)
    before = bare.machine.digest()
    snapshot = bare.machine.snapshots.take()
    assert bare.machine.digest() == before

    bare.take("mov x5, #6\nstr x5, [x0]\nmsr TPIDR_EL1, x5\nmsr VBAR_EL1, x5\nhvc #0", EL1H, x0=bare.va(DATA, 1))
    counter.value += 1
    counter.names["a"] = 1
    counter.log.append(2)
    assert (bare.engine.read("x5"), bare.core.exceptions) == (6, 1)
    assert bare.machine.digest() != before

    bare.machine.snapshots.restore(snapshot)
    assert bare.machine.digest() == before
    assert bare.engine.read("x5") == 5
    assert bare.core.el == 1
    assert bare.engine.read("vbar_el1") == bare.va(0x1000, 1)
    assert (bare.core.exceptions, bare.core.ticks) == (0, 0)
    assert (counter.value, dict(counter.names), list(counter.log)) == (0, {}, [])


@pytest.mark.parametrize("change", ["x7", "sp", "TPIDR_EL2", "memory", "state", "ticks", "current level"])
def test_the_digest_sees_every_kind_of_change(bare: Bare, change: str) -> None:
    counter = Counter(bare.machine.journal)
    bare.enter(EL1H)
    before = bare.machine.digest()
    if change == "memory":
        bare.ram.write(bare.ram.end - 1, b"\x01")
    elif change == "state":
        counter.names["x"] = 1
    elif change == "ticks":
        bare.core.ticks += 1
    elif change == "current level":
        bare.engine.set_pstate(EL2H)
    elif change == "TPIDR_EL2":
        bare.engine.write_sysreg(change, 1)
    else:
        bare.engine.write(change, bare.engine.read(change) + 16)
    assert bare.machine.digest() != before


def test_a_floating_point_register_comes_back(bare: Bare) -> None:
    labels = bare.load("set: fmov d8, x0\nret\nget: fmov x0, d8\nret", 1)
    bare.call(labels["set"], 0x1234)
    snapshot = bare.machine.snapshots.take()
    bare.call(labels["set"], 0x9999)
    bare.machine.snapshots.restore(snapshot)
    assert bare.call(labels["get"])[0] == 0x1234


def test_a_pending_virtual_interrupt_goes_and_comes_with_the_state() -> None:
    bare = Bare()
    unmasked, vi, imo, irq, svc = 0x5, 1 << 7, 1 << 4, 0x280, 0x200
    bare.set_hcr(imo)
    quiet = bare.machine.snapshots.take()
    bare.set_hcr(vi)
    pending = bare.machine.snapshots.take()
    for snapshot, vector in ((pending, irq), (quiet, svc), (pending, irq), (quiet, svc)):
        bare.machine.snapshots.restore(snapshot)
        assert bare.take("nop\nsvc #0", unmasked).vector == vector


def test_code_that_was_patched_is_forgotten(bare: Bare) -> None:
    labels = bare.load("start: mov x0, #1\nret", 1)
    assert bare.call(labels["start"])[0] == 1
    first = bare.machine.snapshots.take()
    bare.load("start: mov x0, #2\nret", 1)
    assert bare.call(labels["start"])[0] == 2
    second = bare.machine.snapshots.take()
    for snapshot, value in ((first, 1), (second, 2), (second, 2), (first, 1)):
        bare.machine.snapshots.restore(snapshot)
        assert bare.call(labels["start"])[0] == value
    bare.load("start: mov x0, #3\nret", 1)
    assert bare.call(labels["start"])[0] == 3
    bare.machine.snapshots.restore(first)
    assert bare.call(labels["start"])[0] == 1


def test_a_mapping_that_was_changed_is_forgotten(bare: Bare) -> None:
    labels = bare.load("start: ldr x0, [x0]\nret", 1)
    bare.ram.write_u64(bare.pa(DATA, 1), 11)
    bare.ram.write_u64(bare.pa(DATA, 2), 22)
    snapshot = bare.machine.snapshots.take()
    assert bare.call(labels["start"], bare.va(DATA, 1))[0] == 11
    bare.el1.map(bare.va(DATA, 1), bare.pa(DATA, 2), 4096, 0x700 | 3 << 53)
    assert bare.call(labels["start"], bare.va(DATA, 1))[0] == 22
    bare.machine.snapshots.restore(snapshot)
    assert bare.call(labels["start"], bare.va(DATA, 1))[0] == 11


@pytest.mark.parametrize("in_hook", [True, False], ids=["in the hook", "in the run loop"])
def test_a_snapshot_is_refused_while_guest_code_waits_for_a_service(in_hook: bool) -> None:
    bare = Bare()
    snapshots = bare.machine.snapshots
    base = snapshots.take()
    refused: list[str] = []

    def service() -> None:
        for attempt in (snapshots.take, lambda: snapshots.restore(base)):
            with pytest.raises(EmulatorError, match="while a service runs guest code") as error:
                attempt()
            refused.append(str(error.value))

    stub = bare.stub("service", 1)
    bare.core.add_service(stub, Service("service", 1, 0, service, in_hook))
    bare.call(stub)
    assert len(refused) == 2
    assert snapshots.take().parent is base


def test_a_snapshot_of_another_machine_is_refused() -> None:
    one, other = Bare(), Bare()
    one.machine.snapshots.take()
    foreign = other.machine.snapshots.take()
    with pytest.raises(EmulatorError, match="another machine"):
        one.machine.snapshots.restore(foreign)


# The tree, by random walks


class Walk:
    """A machine and, beside each snapshot, what everything held when it was taken."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.counter = Counter(machine.journal)
        self.saved: list[tuple[Snapshot, Any]] = []

    def contents(self) -> tuple[Any, ...]:
        ram, counter = self.machine.ram, self.counter
        words = tuple(ram.read_u64(ram.base + page * 4096) for page in range(8))
        return (
            words,
            counter.value,
            dict(counter.names),
            list(counter.log),
            self.machine.engine.read("x3"),
            self.machine.core.ticks,
        )

    def step(self, kind: str, number: int) -> None:
        ram, counter, machine = self.machine.ram, self.counter, self.machine
        if kind == "ram":
            ram.write_u64(ram.base + number % 8 * 4096, number)
        elif kind == "field":
            counter.value = number
        elif kind == "key":
            counter.names[f"k{number % 3}"] = number
        elif kind == "drop":
            counter.names.pop(f"k{number % 3}", None)
        elif kind == "append":
            counter.log.append(number)
        elif kind == "edit" and len(counter.log):
            counter.log[number % len(counter.log)] = number
        elif kind == "clear" and number % 4 == 0:
            counter.log.clear()
        elif kind == "register":
            machine.engine.write("x3", number)
            machine.core.ticks += number
        elif kind == "take":
            self.saved.append((machine.snapshots.take(), self.contents()))
        elif kind == "restore" and self.saved:
            snapshot, expected = self.saved[number % len(self.saved)]
            machine.snapshots.restore(snapshot)
            assert self.contents() == expected


KINDS_OF_STEP = [
    "ram",
    "field",
    "key",
    "drop",
    "append",
    "edit",
    "clear",
    "register",
    "take",
    "take",
    "restore",
    "restore",
]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS_OF_STEP), st.integers(1, 1000)), min_size=10, max_size=60)


@pytest.mark.parametrize(("kind", "examples"), [(kind, 60 if kind is CowRam else 8) for kind in KINDS])
def test_any_walk_between_snapshots_finds_what_was_saved(
    kind: type, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "make_ram", kind)

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(STEPS)
    def walk(steps: list[tuple[str, int]]) -> None:
        walk = Walk(Machine(MachineProfile(ram_size=64 << 20)))
        for step in steps:
            walk.step(*step)
        for snapshot, expected in walk.saved:
            walk.machine.snapshots.restore(snapshot)
            assert walk.contents() == expected
            assert walk.machine.journal.records == []

    walk()


def test_restoring_costs_what_changed() -> None:
    """The journal holds only what was changed since the base."""
    machine = Machine(MachineProfile(ram_size=64 << 20))
    counter = Counter(machine.journal)
    for number in range(1000):
        counter.log.append(number)
    snapshot = machine.snapshots.take()
    assert machine.journal.records == []
    counter.value = 5
    assert len(machine.journal.records) == 1
    machine.snapshots.restore(snapshot)
    assert machine.journal.records == []
    assert len(counter.log) == 1000


# The text that digests are made of


def test_canonical_text_has_no_order_and_no_address() -> None:
    journal = Journal()
    one: StateDict[str, int] = StateDict(journal)
    two: StateDict[str, int] = StateDict(journal)
    for name in "abc":
        one[name] = ord(name)
    for name in "cba":
        two[name] = ord(name)
    assert canonical(one) == canonical(two)
    assert canonical({1, 2, 3}) == canonical({3, 2, 1})
    assert canonical((1, "1")) != canonical((1, 1))
    counter = Counter(journal)
    text = canonical(counter)
    assert "0x" not in text
    counter.value = 1
    assert canonical(counter) != text


def test_two_roots_of_one_name_are_an_error() -> None:
    journal = Journal()
    Counter(journal)
    for make in (
        lambda: Counter(journal),
        lambda: StateDict(journal, "counter"),
        lambda: StateList(journal, "counter"),
    ):
        with pytest.raises(ValueError, match="two state roots are named 'counter'"):
            make()
