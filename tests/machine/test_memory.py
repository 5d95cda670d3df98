"""Guest RAM: snapshots form a tree and every state can be brought back."""

from __future__ import annotations

import os
import random

import pytest

from pkvm_emu.machine.memory import PAGE_SIZE, CopyRam, CowRam, GuestRam, make_ram

BASE = 0x4000_0000
SIZE = 64 * PAGE_SIZE

KINDS = [CopyRam] + ([CowRam] if hasattr(os, "memfd_create") and os.path.exists("/proc/self/pagemap") else [])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def ram(request: pytest.FixtureRequest) -> GuestRam:
    return request.param(BASE, SIZE)


def test_words_are_little_endian_at_any_alignment(ram: GuestRam) -> None:
    ram.write_u64(BASE + 16, 0x1122334455667788)
    assert ram.read(BASE + 16, 8) == bytes.fromhex("8877665544332211")
    ram.write_u64(BASE + 33, 0xAABBCCDD)
    assert ram.read_u64(BASE + 33) == 0xAABBCCDD
    assert ram.read_u32(BASE + 33) == 0xAABBCCDD


@pytest.mark.parametrize("pa", [BASE - 8, BASE + SIZE, BASE + SIZE - 4, 0])
def test_an_access_outside_the_block_is_refused(ram: GuestRam, pa: int) -> None:
    with pytest.raises(IndexError, match="no RAM"):
        ram.read_u64(pa)
    with pytest.raises(IndexError, match="no RAM"):
        ram.write_u64(pa, 1)


def test_restore_brings_back_what_was_written_before_the_snapshot(ram: GuestRam) -> None:
    ram.write(BASE + 5 * PAGE_SIZE, b"before")
    saved = ram.snapshot()
    ram.write(BASE + 5 * PAGE_SIZE, b"after!")
    ram.write(BASE + 9 * PAGE_SIZE, b"new")
    ram.restore(saved)
    assert ram.read(BASE + 5 * PAGE_SIZE, 6) == b"before"
    assert ram.read(BASE + 9 * PAGE_SIZE, 3) == bytes(3)


def test_a_snapshot_holds_only_the_pages_that_changed(ram: GuestRam) -> None:
    first = ram.snapshot()
    ram.write_u64(BASE + 3 * PAGE_SIZE, 7)
    ram.read_u64(BASE + 4 * PAGE_SIZE)
    second = ram.snapshot()
    assert list(second.after) == [3]
    assert not first.after


def test_any_snapshot_of_a_tree_can_be_reached_from_any_other(ram: GuestRam) -> None:
    rng = random.Random(1)
    states = []
    for _ in range(12):
        if states and rng.random() < 0.5:
            ram.restore(rng.choice(states)[0])
        for _ in range(5):
            ram.write_u64(BASE + rng.randrange(64) * PAGE_SIZE, rng.getrandbits(64))
        states.append((ram.snapshot(), ram.read(BASE, SIZE)))
    for _ in range(60):
        saved, contents = rng.choice(states)
        ram.write_u64(BASE + rng.randrange(64) * PAGE_SIZE, rng.getrandbits(64))
        ram.restore(saved)
        assert ram.read(BASE, SIZE) == contents


def test_make_ram_gives_a_working_block() -> None:
    ram = make_ram(BASE, SIZE)
    saved = ram.snapshot()
    ram.write_u64(BASE, 1)
    ram.restore(saved)
    assert ram.read_u64(BASE) == 0
