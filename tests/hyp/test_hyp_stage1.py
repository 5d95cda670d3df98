"""The EL2 stage-1 table: what it maps, what it refuses, and that table pages are counted."""

from __future__ import annotations

import errno

import pytest
from ownership_support import OFFSET, PAGE, make

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.page_state import NOPAGE, OWNED, RESTRICTED_PROT, SHARED_BORROWED
from pkvm_emu.hyp.pgtable import PROT_DEVICE, PROT_R, PROT_RW, PROT_RWX, PROT_W, PROT_X, with_state

PRIVATE = 0x4000_0000_0000
P = 0x4800_0000


@pytest.fixture
def hyp():
    return make().hyp


def test_the_linear_map_is_arithmetic(hyp):
    assert hyp.va_of(P) == P + OFFSET
    assert hyp.pa_of(P + OFFSET) == P
    assert hyp.va_of((1 << 64) - OFFSET) == 0


def test_linear_mappings_are_pages_and_private_ones_may_be_blocks(hyp):
    assert hyp.map_linear(P, 0x20_0000, PROT_RW) == 0
    assert hyp.walk(hyp.va_of(P)).level == 3
    assert hyp.map(PRIVATE, 0x20_0000, P, PROT_RW) == 0
    assert hyp.walk(PRIVATE + 5)[:1] == (2,)
    assert hyp.walk(PRIVATE + 5).pa == P + 5


@pytest.mark.parametrize("prot", [0, PROT_W, PROT_RWX, PROT_R | PROT_X | PROT_DEVICE])
def test_bad_protections_are_refused(hyp, prot):
    assert hyp.map(PRIVATE, PAGE, P, prot) == -errno.EINVAL


def test_beyond_the_address_range_is_refused(hyp):
    assert hyp.map((1 << 48) - PAGE, 2 * PAGE, P, PROT_RW) == -errno.ERANGE
    assert hyp.leaf(1 << 48) is None
    assert hyp.check_state(1 << 48, PAGE, OWNED)[0] == -errno.ERANGE


def test_states_come_from_the_entry(hyp):
    states = {
        PROT_RW: OWNED,
        with_state(PROT_RW, SHARED_BORROWED): SHARED_BORROWED,
        PROT_R: RESTRICTED_PROT,
        PROT_R | PROT_X: RESTRICTED_PROT,
        PROT_RW | PROT_DEVICE: OWNED,
    }
    for index, (prot, state) in enumerate(states.items()):
        va = PRIVATE + index * PAGE
        assert hyp.map(va, PAGE, P, prot) == 0
        assert hyp.page_state(hyp.walk(va).descriptor) == state
        assert hyp.prot(hyp.walk(va).descriptor) & 7 == prot & 7
    assert hyp.page_state(0) == NOPAGE
    assert hyp.check_state(PRIVATE, 2 * PAGE, OWNED) == (-errno.EPERM, PRIVATE + PAGE)


def test_only_software_bits_of_a_live_entry_may_change(hyp):
    assert hyp.map(PRIVATE, PAGE, P, PROT_RW) == 0
    assert hyp.map(PRIVATE, PAGE, P, with_state(PROT_RW, SHARED_BORROWED)) == 0
    with pytest.raises(HypBug, match="live mapping"):
        hyp.map(PRIVATE, PAGE, P, PROT_R)
    assert hyp.map(PRIVATE + 0x20_0000, 0x20_0000, P, PROT_RW) == 0
    with pytest.raises(HypBug, match="block"):
        hyp.map(PRIVATE + 0x20_0000, PAGE, P, PROT_RW)


def test_unmapping_frees_tables_and_stops_at_the_first_hole(hyp):
    free = hyp.pool.free_pages
    assert hyp.map(PRIVATE, 4 * PAGE, P, PROT_RW) == 0
    assert hyp.map(PRIVATE + 5 * PAGE, 1000 * PAGE, P, PROT_RW) == 0
    assert hyp.unmap(PRIVATE, 8 * PAGE) == 4 * PAGE
    assert hyp.unmap(PRIVATE + 5 * PAGE, 1000 * PAGE) == 1000 * PAGE
    assert hyp.pool.free_pages == free
    assert hyp.unmap(PRIVATE, PAGE) == 0


def test_a_block_is_not_unmapped_in_part(hyp):
    assert hyp.map(PRIVATE, 0x20_0000, P, PROT_RW) == 0
    assert hyp.unmap(PRIVATE, PAGE) == 0
    assert hyp.unmap(PRIVATE, 0x20_0000) == 0x20_0000


def test_without_table_pages_a_mapping_is_enomem(hyp):
    while hyp.pool.try_alloc() is not None:
        pass
    assert hyp.map(PRIVATE, PAGE, P, PROT_RW) == -errno.ENOMEM


def test_a_change_of_a_live_entry_invalidates_the_tlb(hyp):
    flushes = []
    hyp.flush = lambda: flushes.append(1)
    hyp.map(PRIVATE, 2 * PAGE, P, PROT_RW)
    assert not flushes
    hyp.unmap(PRIVATE, 2 * PAGE)
    assert len(flushes) == 1
