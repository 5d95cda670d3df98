"""The generic table builder: what is mapped is what a walk finds, and table pages do not leak."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.machine.pagetable import (
    PAGE_SIZE,
    BumpAllocator,
    FlatMemory,
    OutOfTablePages,
    PageTable,
    start_level_of,
)

ATTRS = 0x700
MIB2, GIB = 1 << 21, 1 << 30


def make(va_bits=39, pages=256, **kwargs):
    memory = FlatMemory(pages * PAGE_SIZE)
    zero = lambda pa: memory.write(pa, bytes(PAGE_SIZE))  # noqa: E731
    allocator = BumpAllocator(0, pages * PAGE_SIZE, zero)
    return PageTable(memory, allocator, va_bits, **kwargs), allocator


@pytest.mark.parametrize(("bits", "level"), [(48, 0), (40, 0), (39, 1), (30, 2), (21, 3)])
def test_the_start_level_follows_from_the_address_bits(bits, level):
    assert start_level_of(bits) == level


@pytest.mark.parametrize(
    ("size", "max_block", "level"), [(GIB, 1, 1), (GIB, 2, 2), (MIB2, 1, 2), (MIB2, 3, 3), (PAGE_SIZE, 1, 3)]
)
def test_a_mapping_uses_the_largest_blocks_allowed(size, max_block, level):
    table, _ = make(pages=600)
    table.map(GIB, 2 * GIB, size, ATTRS, max_block)
    leaf = table.walk(GIB + size - 8)
    assert (leaf.level, leaf.pa) == (level, 2 * GIB + size - 8)
    assert leaf.descriptor & 0xFFF == ATTRS | (3 if level == 3 else 1)
    assert not table.walk(GIB + size).valid
    assert not table.walk(GIB - 8).valid


def test_an_offset_that_is_not_block_aligned_forces_pages():
    table, _ = make()
    table.map(MIB2, PAGE_SIZE, MIB2, ATTRS)
    assert table.walk(MIB2).level == 3


def test_a_page_changed_inside_a_block_splits_it_and_keeps_the_rest():
    table, allocator = make()
    table.map(GIB, GIB, GIB, ATTRS)
    table.map(GIB + PAGE_SIZE, 0x5000, PAGE_SIZE, 0x440)
    assert table.walk(GIB + PAGE_SIZE).pa == 0x5000
    assert table.walk(GIB).pa == GIB
    assert table.walk(GIB + MIB2)[:3] == (2, GIB + MIB2 | ATTRS | 1, GIB + MIB2)
    table.map(GIB, GIB, GIB, ATTRS)
    assert table.walk(GIB + PAGE_SIZE)[:2] == (1, GIB | ATTRS | 1)
    assert len(allocator.freed) == 2


def test_unmapping_everything_gives_every_table_but_the_root_back():
    table, allocator = make()
    table.map(5 * PAGE_SIZE, 0, 3 * MIB2, ATTRS)
    used = len(list(table.tables()))
    table.unmap(0, 4 * MIB2)
    assert list(table.leaves()) == []
    assert list(table.tables()) == []
    assert len(allocator.freed) == used


def test_protect_changes_only_the_range_and_splits_a_block():
    table, _ = make()
    table.map(0, 0, MIB2, ATTRS)
    table.protect(PAGE_SIZE, PAGE_SIZE, set_bits=1 << 54, clear_bits=0x100)
    assert table.walk(PAGE_SIZE).descriptor == PAGE_SIZE | 1 << 54 | 0x600 | 3
    assert table.walk(0).descriptor == ATTRS | 3
    assert table.walk(2 * PAGE_SIZE).pa == 2 * PAGE_SIZE


def test_a_flush_follows_a_change_of_a_live_entry_and_nothing_else():
    flushes = []
    table, _ = make(flush=lambda: flushes.append(1))
    table.map(0, 0, 4 * PAGE_SIZE, ATTRS)
    assert flushes == []
    table.map(0, PAGE_SIZE, PAGE_SIZE, ATTRS)
    table.unmap(PAGE_SIZE, PAGE_SIZE)
    table.protect(2 * PAGE_SIZE, PAGE_SIZE, 0, 0x100)
    assert len(flushes) == 3
    table.unmap(PAGE_SIZE, PAGE_SIZE)
    assert len(flushes) == 3


def test_the_upper_half_is_addressed_by_its_own_addresses():
    base = 0xFFFF_FF80_0000_0000
    table, _ = make(va_base=base)
    table.map(base + GIB, 0x4000_0000, MIB2, ATTRS)
    assert table.walk(base + GIB + 4).pa == 0x4000_0004
    assert [m.va for m in table.leaves()] == [base + GIB]
    with pytest.raises(ValueError, match="outside"):
        table.walk(GIB)


def test_a_stage2_table_of_40_bits_has_two_root_pages_at_level_1():
    table, _ = make(va_bits=40, start_level=1)
    assert table.root_pages == 2
    table.map((1 << 39) + GIB, GIB, GIB, ATTRS)
    assert table.walk((1 << 39) + GIB).level == 1
    assert [m.va for m in table.leaves()] == [(1 << 39) + GIB]


def test_an_empty_allocator_is_an_error_that_says_so():
    table, _ = make(pages=2)
    with pytest.raises(OutOfTablePages, match="no page is left"):
        table.map(0, 0, PAGE_SIZE, ATTRS)


@pytest.mark.parametrize(("va", "size"), [(1, PAGE_SIZE), (0, 5), (1 << 39, PAGE_SIZE), (0, 1 << 40)])
def test_bad_ranges_are_refused(va, size):
    table, _ = make()
    with pytest.raises(ValueError):
        table.map(va, 0, size, ATTRS)


PAGES = 1536
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 600)).map(lambda r: (r[0], min(r[1], PAGES - r[0])))
steps = st.lists(st.tuples(st.sampled_from(["map", "unmap", "protect"]), ranges, st.integers(0, 3)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_any_sequence_of_changes_agrees_with_a_plain_dictionary(sequence):
    table, allocator = make(pages=64)
    model: dict[int, tuple[int, int]] = {}
    for what, (page, count), extra in sequence:
        va, size = page * PAGE_SIZE, count * PAGE_SIZE
        if what == "map":
            pa = va + extra * MIB2
            table.map(va, pa, size, ATTRS)
            model.update({page + i: (pa + i * PAGE_SIZE, ATTRS) for i in range(count)})
        elif what == "unmap":
            table.unmap(va, size)
            for i in range(count):
                model.pop(page + i, None)
        else:
            table.protect(va, size, 0, 0x400)
            model.update({page + i: (model[page + i][0], 0x300) for i in range(count) if page + i in model})
    found = {}
    for mapping in table.leaves():
        for i in range(mapping.size // PAGE_SIZE):
            found[mapping.va // PAGE_SIZE + i] = (mapping.pa + i * PAGE_SIZE, mapping.descriptor & 0xFFC)
    assert found == model
    in_use = 1 + len(list(table.tables()))
    assert in_use + len(allocator.freed) == allocator._next // PAGE_SIZE


def test_mapping_a_gibibyte_in_blocks_takes_one_write_for_the_table_and_one_for_its_entry(monkeypatch):
    table, _ = make(pages=64)
    writes = []
    for name in ("write", "write_u64"):
        own = getattr(table.mem, name)
        monkeypatch.setattr(table.mem, name, lambda pa, value, own=own: (writes.append(pa), own(pa, value)))
    table.map(0, 0, GIB, ATTRS, 2)
    # A new table is cleared, too.
    assert len(writes) == 3
    writes.clear()
    table.map(0, 0, GIB, ATTRS, 2)
    assert len(writes) == 1
