"""The EL2 page pool, its reference counts, and the vmemmap they are kept in."""

from __future__ import annotations

import pytest

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.page_state import (
    MODULE_OWNED,
    NOPAGE,
    SHARED_OWNED,
    U64_MAX,
    HypVmemmap,
    MemoryMap,
    Region,
    state_name,
)
from pkvm_emu.hyp.pool import HypPool, divide_reserve
from pkvm_emu.machine.pagetable import PAGE_SIZE, FlatMemory, OutOfTablePages
from pkvm_emu.machine.state import Journal

BASE, SIZE = 0x8000_0000, 64 * PAGE_SIZE
TWO = (Region(BASE, SIZE), Region(BASE + 4 * SIZE, SIZE, nomap=True))


@pytest.fixture
def vmemmap():
    memory = MemoryMap(TWO)
    return HypVmemmap(FlatMemory(8 * SIZE, BASE), memory, BASE + 6 * SIZE)


@pytest.fixture
def pool(vmemmap):
    return HypPool(Journal(), vmemmap, BASE, 4, "pool")


def test_pages_come_zeroed_with_one_reference_until_there_are_none(pool, vmemmap):
    vmemmap.mem.write(BASE, b"\xff" * PAGE_SIZE)
    pages = [pool.try_alloc() for _ in range(5)]
    assert pages == [BASE, BASE + PAGE_SIZE, BASE + 2 * PAGE_SIZE, BASE + 3 * PAGE_SIZE, None]
    assert vmemmap.mem.read(BASE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert vmemmap.refcount(BASE) == 1
    with pytest.raises(OutOfTablePages):
        pool.alloc()


def test_a_page_comes_back_when_its_last_reference_goes(pool):
    page = pool.alloc()
    pool.get_page(page + 8)
    pool.put_page(page)
    assert pool.free_pages == 3
    pool.put_page(page)
    assert pool.free_pages == 4
    assert [pool.alloc() for _ in range(4)][-1] == page


def test_dropping_a_reference_too_many_or_a_foreign_page_is_a_bug(pool):
    page = pool.alloc()
    pool.put_page(page)
    with pytest.raises(HypBug, match="below zero"):
        pool.put_page(page)
    with pytest.raises(HypBug, match="not from"):
        pool.put_page(BASE + 8 * PAGE_SIZE)


def test_contiguous_pages_are_aligned_and_the_skipped_ones_are_not_lost(vmemmap):
    pool = HypPool(Journal(), vmemmap, BASE, 8, "pool")
    pool.alloc()
    assert pool.try_alloc(2) == BASE + 4 * PAGE_SIZE
    assert pool.try_alloc(2) is None
    assert pool.free_pages == 3
    assert {pool.alloc() for _ in range(3)} == {BASE + i * PAGE_SIZE for i in (1, 2, 3)}


def test_the_pool_goes_back_with_the_journal(vmemmap):
    journal = Journal()
    pool = HypPool(journal, vmemmap, BASE, 4, "pool")
    first = pool.alloc()
    mark, digest = journal.mark(), journal.digest()
    pool.alloc()
    pool.put_page(first)
    assert journal.digest() != digest
    journal.undo_to(mark)
    assert (journal.digest(), pool.free_pages) == (digest, 3)


def test_the_vmemmap_has_the_kernel_layout(vmemmap):
    vmemmap.set_refcount(BASE, 3, order=2)
    vmemmap.set_host_state(BASE, NOPAGE | MODULE_OWNED)
    entry = vmemmap.entry(BASE)
    assert vmemmap.mem.read(entry, 8) == bytes((3, 0, 2, 12, 0, 0, 0, 0))
    assert entry - vmemmap.backing == (BASE >> 12) * 8 % PAGE_SIZE
    assert vmemmap.entry(BASE + PAGE_SIZE) == entry + 8


def test_the_vmemmap_backs_only_ram_and_says_where_it_belongs(vmemmap):
    va, pa, size = next(vmemmap.mappings(1 << 40))
    assert va + vmemmap.entry(BASE) - pa == (1 << 40) + (BASE >> 12) * 8
    assert size % PAGE_SIZE == 0
    total = sum(size for _, _, size in vmemmap.mappings(0))
    assert total == HypVmemmap.pages_needed(vmemmap.memory) * PAGE_SIZE
    with pytest.raises(HypBug, match="no struct hyp_page"):
        vmemmap.refcount(0x900_0000)
    with pytest.raises(HypBug):
        vmemmap.set_states(BASE, 65, SHARED_OWNED)


def test_range_checks_name_the_first_page_that_differs(vmemmap):
    vmemmap.set_states(BASE, 8, SHARED_OWNED)
    assert vmemmap.first_mismatch(BASE, 8, SHARED_OWNED, True) is None
    assert vmemmap.first_mismatch(BASE, 9, SHARED_OWNED, True) == (BASE + 8 * PAGE_SIZE, False)
    vmemmap.add_refcount(BASE + 3 * PAGE_SIZE, 256)
    assert vmemmap.first_mismatch(BASE, 8, SHARED_OWNED, True) == (BASE + 3 * PAGE_SIZE, True)
    assert vmemmap.first_mismatch(BASE, 8, SHARED_OWNED, False) is None
    assert vmemmap.any_referenced(BASE, 8)
    assert not vmemmap.any_referenced(BASE, 3)
    assert vmemmap.states(BASE, 9) == b"\x01" * 8 + b"\0"


def test_reference_counts_have_15_bits(vmemmap):
    vmemmap.add_refcount(BASE, 0x7FFF)
    with pytest.raises(HypBug, match="overflows"):
        vmemmap.add_refcount(BASE, 1)


def test_memory_ranges_alternate_between_regions_and_gaps():
    memory = MemoryMap(reversed(TWO))
    assert memory.find(0) == (None, 0, BASE)
    assert memory.find(BASE)[1:] == (BASE, BASE + SIZE)
    assert memory.find(BASE + SIZE) == (None, BASE + SIZE, BASE + 4 * SIZE)
    assert memory.find(1 << 50) == (None, BASE + 5 * SIZE, U64_MAX)
    assert memory.range_is_memory(BASE + PAGE_SIZE, BASE + SIZE)
    assert not memory.range_is_memory(BASE, BASE + SIZE + 1)
    # An empty range at the start of a region ends before it: the hypervisor's arithmetic says no.
    assert not memory.range_is_memory(BASE, BASE)
    assert memory.range_is_memory(BASE + PAGE_SIZE, BASE + PAGE_SIZE)


@pytest.mark.parametrize("bad", [[Region(1, PAGE_SIZE)], [Region(0, 0)], [Region(0, SIZE), Region(PAGE_SIZE, SIZE)]])
def test_bad_regions_are_refused(bad):
    with pytest.raises(ValueError, match="memory regions"):
        MemoryMap(bad)


def test_twelve_mebibytes_are_enough_for_one_gibibyte():
    memory = MemoryMap([Region(0x4000_0000, 1 << 30)])
    parts = divide_reserve(0x7F40_0000, 12 << 20, memory)
    assert parts.vmemmap_pages == 512
    assert min(parts.hyp_table_pages, parts.host_table_pages) >= 514
    assert parts.rest + parts.rest_pages * PAGE_SIZE == 0x8000_0000
    with pytest.raises(ValueError, match="do not hold"):
        divide_reserve(0x7F40_0000, 8 << 20, memory)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (0, "OWNED"),
        (1, "SHARED_OWNED"),
        (3, "MMIO_DMA"),
        (8, "NOPAGE"),
        (12, "NOPAGE|MODULE_OWNED"),
        (17, "SHARED_OWNED|RESTRICTED_PROT"),
    ],
)
def test_states_have_names(state, text):
    assert state_name(state) == text
