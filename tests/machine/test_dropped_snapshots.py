"""Snapshots that are dropped: those after them hold what they held."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.machine.state import StateDict

MIB = 1 << 20
#: (what to do, where): write a page, take, restore, drop.
STEPS = st.lists(st.tuples(st.sampled_from(("write", "take", "restore", "drop")), st.integers(0, 7)), max_size=40)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_what_is_left_is_restored_as_it_was(steps: list[tuple[str, int]]) -> None:
    machine = Machine(MachineProfile(ram_size=64 * MIB))
    state: StateDict[int, int] = StateDict(machine.journal, "test")
    base = machine.profile.ram_base
    kept: list[tuple[Snapshot, str]] = []
    for number, (what, where) in enumerate(steps):
        if what == "write":
            machine.ram.write_u64(base + where * 4096, number + 1)
            state[where] = number
        elif what == "take":
            kept.append((machine.snapshots.take(), machine.digest()))
        elif kept and what == "restore":
            snapshot, digest = kept[where % len(kept)]
            machine.snapshots.restore(snapshot)
            assert machine.digest() == digest
        elif kept:
            machine.snapshots.drop([kept.pop(where % len(kept))[0]])
    for snapshot, digest in kept:
        machine.snapshots.restore(snapshot)
        assert machine.digest() == digest


def test_a_dropped_snapshot_lies_on_no_way_any_more() -> None:
    machine = Machine(MachineProfile(ram_size=64 * MIB))
    snapshots = []
    for number in range(5):
        machine.ram.write_u64(machine.profile.ram_base + 4096 * number, 1)
        snapshots.append(machine.snapshots.take())
    machine.snapshots.drop(snapshots[1:4])
    assert snapshots[4].parent is snapshots[0]
    assert snapshots[0].children == [snapshots[4]]
    assert len(snapshots[4].ram.after) == 4
