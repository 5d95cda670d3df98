"""The host stage-2: lazy fills, splitting with prefill, tables that become blocks again, recycling."""

from __future__ import annotations

import errno

import pytest
from ownership_support import A14, A15, A16, GENERATIONS, LPA2, PAGE, RAM, RAM_SIZE, RESERVE, UART, make

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.page_state import Region
from pkvm_emu.hyp.pgtable import PROT_R, PROT_RW, PROT_RWX, TableFeatures

P = 0x4800_0000
MIB2, GIB = 1 << 21, 1 << 30
XN = 1 << 54


def entry(memory, pa):
    leaf = memory.host.get_leaf(pa)
    return leaf.descriptor, leaf.level


@pytest.mark.parametrize("generation", GENERATIONS)
def test_ram_is_populated_and_the_reserved_memory_is_taken(generation):
    memory = make(generation)
    shared = 0x4FC if generation == A16 else 0x7FC
    assert entry(memory, P) == (P | shared | 1, 2)
    assert entry(memory, RESERVE) == (0x4, 3)
    assert entry(memory, UART) == (0, 1)
    assert memory.ownership.check_consistency() == []


def test_without_lpa2_descriptors_carry_inner_shareable():
    memory = make(A16, TableFeatures(lpa2=False))
    assert entry(memory, P) == (P | 0x7FD, 2)
    assert memory.host.fault(UART) == 0
    assert entry(memory, UART) == (XN | 0x7FD, 1)


def test_a_fault_maps_the_largest_block_around_it():
    memory = make()
    assert memory.host.fault(UART) == 0
    assert entry(memory, UART) == (XN | 0x4FD, 1)
    assert memory.host.fault(UART) == -errno.EAGAIN
    assert memory.host.fault(1 << 48) == -errno.ERANGE
    memory.host.annotate(P, PAGE, 0x4)
    assert memory.host.fault(P) == -errno.EPERM


def test_a_fault_far_away_fills_512_gib_with_1_gib_blocks():
    memory = make()
    assert memory.host.fault(1 << 40) == 0
    assert entry(memory, (1 << 40) + 511 * GIB) == ((1 << 40) + 511 * GIB | XN | 0x4FD, 1)
    assert entry(memory, (1 << 40) + 512 * GIB)[1] == 0


def test_a_block_stays_inside_its_region():
    regions = (Region(RAM, RAM_SIZE), Region(RAM + RAM_SIZE + 3 * MIB2, MIB2 + PAGE))
    memory = make(regions=regions)
    hole = RAM + RAM_SIZE + MIB2
    assert memory.host.fault(hole) == 0
    assert entry(memory, hole) == (hole | XN | 0x4FD, 2)
    last = regions[1].end
    assert memory.host.fault(last) == 0
    assert entry(memory, last) == (last | XN | 0x4FF, 3)
    assert entry(memory, last - PAGE)[0] == (last - PAGE) | 0x4FF


def test_splitting_fills_the_table_with_the_default_mapping():
    memory = make()
    memory.host.fault(UART)
    assert memory.host.annotate(UART, PAGE, 0x4) == 0
    assert entry(memory, UART) == (0x4, 3)
    assert entry(memory, UART + PAGE) == (UART + PAGE | XN | 0x4FF, 3)
    assert entry(memory, UART + MIB2) == (UART + MIB2 | XN | 0x4FD, 2)
    assert entry(memory, GIB - PAGE)[1] == 2


def test_an_old_split_loses_the_block_that_begins_with_the_target():
    memory = make(A14)
    memory.host.fault(UART)
    assert memory.host.annotate(UART, PAGE, 0x4) == 0
    assert entry(memory, UART) == (0x4, 3)
    assert entry(memory, UART + PAGE) == (0, 3)
    assert entry(memory, UART + MIB2) == (UART + MIB2 | XN | 0x7FD, 2)
    assert memory.host.annotate(UART + MIB2 + PAGE, PAGE, 0x4) == 0
    assert entry(memory, UART + MIB2) == (UART + MIB2 | XN | 0x7FF, 3)


@pytest.mark.parametrize("generation", [A15, A16])
def test_a_table_becomes_a_block_again_only_after_finalisation(generation):
    memory = make(generation)
    memory.host.fault(UART)
    free = memory.host_pool.free_pages
    memory.host.annotate(UART, PAGE, 0x4)
    memory.host.idmap(UART, PAGE, PROT_RW)
    assert entry(memory, UART)[1] == 3
    memory.ownership.finalise()
    memory.host.annotate(UART, PAGE, 0x4)
    memory.host.annotate(UART + MIB2, PAGE, 0x4)
    memory.host.idmap(UART, PAGE, PROT_RW)
    assert entry(memory, UART)[1] == 2
    memory.host.idmap(UART + MIB2, PAGE, PROT_RW)
    assert entry(memory, UART)[1] == 1
    assert memory.host_pool.free_pages == free


def test_tables_of_the_boot_are_pinned_and_never_become_blocks():
    memory = make()
    memory.ownership.finalise()
    assert entry(memory, P)[1] == 2
    memory.host.annotate(P, PAGE, 0x4)
    memory.host.idmap(P, PAGE, PROT_RWX)
    assert entry(memory, P)[1] == 2


def test_an_old_generation_drops_the_table_and_refaults():
    memory = make(A14)
    memory.host.fault(UART)
    free = memory.host_pool.free_pages
    memory.host.annotate(UART, PAGE, 0x4)
    memory.host.annotate(UART, PAGE, 0)
    assert entry(memory, UART) == (0, 1)
    assert memory.host_pool.free_pages == free
    assert memory.host.fault(UART) == 0
    assert entry(memory, UART)[1] == 1


def test_a_block_replaces_an_idle_table_and_a_pinned_one_is_a_bug():
    memory = make()
    memory.host.annotate(P, PAGE, 0x4)
    assert memory.host.idmap(P, MIB2, PROT_RWX) == 0
    assert entry(memory, P) == (P | 0x4FD, 2)
    with pytest.raises(HypBug, match="pinned table"):
        memory.host.idmap(RESERVE, MIB2, PROT_RWX)


def test_restricted_mappings_are_pages_even_for_an_aligned_block():
    memory = make()
    assert memory.host.idmap(P, MIB2, PROT_R) == 0
    assert entry(memory, P) == (P | XN | 0x47F, 3)
    table = memory.host.get_leaf(P).entry
    assert memory.host_pool.page_count(table) == 513


def test_when_the_pool_is_empty_the_mmio_mappings_are_recycled():
    memory = make()
    for offset in range(0, 4 * MIB2, MIB2):
        memory.host.idmap(UART + offset, PAGE, PROT_RW)
    assert entry(memory, UART)[1] == 3
    while memory.host_pool.try_alloc() is not None:
        pass
    told = []
    memory.host.add_iommu_hooks(lambda start, end, prot: told.append((start, end, prot)), lambda mapped: None)
    assert memory.host.annotate(P, PAGE, 0x4) == 0
    assert entry(memory, P) == (0x4, 3)
    assert entry(memory, UART) == (0, 1)
    assert told == [(0, RAM, 0), (RAM + RAM_SIZE, 1 << 48, 0)]
    assert memory.host.annotate(P + 64 * MIB2, PAGE, 0x4) == 0


def test_an_exhausted_pool_is_enomem():
    memory = make()
    while memory.host_pool.try_alloc() is not None:
        pass
    assert memory.host.annotate(P, PAGE, 0x4) == -errno.ENOMEM
    assert memory.host.table.hold_pages(P, PAGE) == -errno.ENOMEM


def test_40_bits_of_ipa_use_two_root_pages():
    memory = make(A16, LPA2, ipa_bits=40)
    table = memory.host.table
    assert (table.start_level, table.root_pages) == (1, 2)
    assert memory.host.fault((1 << 39) + 5) == 0
    assert entry(memory, 1 << 39)[1] == 1
    assert memory.host.fault(1 << 40) == -errno.ERANGE


def test_changes_of_live_entries_invalidate_the_tlb():
    memory = make()
    flushes = []
    memory.host.table.flush = lambda: flushes.append(1)
    memory.host.fault(UART)
    assert not flushes
    memory.host.annotate(P, 4 * PAGE, 0x4)
    assert len(flushes) == 1
    memory.host.annotate(P, 4 * PAGE, 0x10)
    assert len(flushes) == 1
    memory.host.idmap(P + 8 * PAGE, PAGE, PROT_R)
    assert len(flushes) == 2


def test_a_nomap_region_is_mapped_but_protected_ranges_are_not():
    regions = (Region(RAM, RAM_SIZE), Region(RAM + RAM_SIZE, MIB2, nomap=True))
    memory = make(regions=regions, protected=((0x1000_0000, MIB2),))
    assert entry(memory, RAM + RAM_SIZE) == (RAM + RAM_SIZE | 0x4FD, 2)
    assert entry(memory, 0x1000_0000) == (0x10, 3)
