"""Protections to descriptors and back: the forms a running kernel showed, and what each table refuses."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.hyp.pgtable import (
    PROT_DEVICE,
    PROT_NORMAL_NC,
    PROT_PXN,
    PROT_R,
    PROT_RW,
    PROT_RWX,
    PROT_SW,
    PROT_UXN,
    PROT_W,
    PROT_X,
    TableFeatures,
    default_host_attr,
    hyp_attr,
    hyp_prot,
    leaf_descriptor,
    owner_annotation,
    stage2_attr,
    stage2_prot,
    state_of,
    visit_leaves,
    with_state,
)
from pkvm_emu.machine.pagetable import PAGE_SIZE, BumpAllocator, FlatMemory, PageTable

LPA2, PLAIN, NVHE = TableFeatures(lpa2=True), TableFeatures(), TableFeatures(hvhe=False)
XN = 1 << 54
protections = st.integers(0, 0x7F)
features = st.builds(TableFeatures, st.booleans(), st.booleans(), st.booleans())


@pytest.mark.parametrize(
    ("prot", "shape", "with_lpa2", "without"),
    [
        (PROT_RWX, leaf_descriptor(0, 0, 3), 0x4FF, 0x7FF),
        (PROT_RWX, leaf_descriptor(0, 0, 2), 0x4FD, 0x7FD),
        (PROT_RW, 3, XN | 0x4FF, XN | 0x7FF),
        (PROT_R, 3, XN | 0x47F, XN | 0x77F),
        (PROT_W, 3, XN | 0x4BF, XN | 0x7BF),
        (PROT_RW | PROT_DEVICE, 3, XN | 0x4C7, XN | 0x7C7),
        (PROT_RW | PROT_NORMAL_NC, 3, XN | 0x4D7, XN | 0x7D7),
        (PROT_RW | PROT_PXN, 3, 1 << 53 | 0x4FF, 1 << 53 | 0x7FF),
        (PROT_RW | PROT_UXN, 3, 3 << 53 | 0x4FF, 3 << 53 | 0x7FF),
    ],
)
def test_stage2_leaves(prot, shape, with_lpa2, without):
    assert stage2_attr(prot, LPA2) | shape == with_lpa2
    assert stage2_attr(prot, PLAIN) | shape == without


@pytest.mark.parametrize(
    "prot",
    [
        PROT_RW | PROT_DEVICE | PROT_NORMAL_NC,
        PROT_RWX | PROT_DEVICE,
        PROT_RWX | PROT_NORMAL_NC,
        PROT_RWX | PROT_PXN,
        PROT_RWX | PROT_UXN,
        PROT_RW | PROT_PXN | PROT_UXN,
    ],
)
def test_stage2_refuses(prot):
    assert stage2_attr(prot, LPA2) == -errno.EINVAL


@given(protections, features)
def test_a_stage2_protection_reads_back_without_its_memory_type(prot, feature):
    attr = stage2_attr(prot, feature)
    if attr > 0:
        assert stage2_prot(leaf_descriptor(0x8000_0000, attr, 3)) == prot & ~(PROT_DEVICE | PROT_NORMAL_NC)


def test_the_default_host_mapping():
    assert default_host_attr(True, LPA2) == 0x4FC
    assert default_host_attr(False, PLAIN) == XN | 0x7FC


@pytest.mark.parametrize(
    ("prot", "vhe", "nvhe"),
    [
        (PROT_RW, XN | 0x703, XN | 0x743),
        (PROT_R, XN | 0x783, XN | 0x7C3),
        (PROT_R | PROT_X, 0x783, 0x7C3),
        (PROT_RW | PROT_DEVICE, XN | 0x713, XN | 0x753),
        (PROT_RW | PROT_NORMAL_NC, XN | 0x70B, XN | 0x74B),
    ],
)
def test_el2_leaves_in_both_forms(prot, vhe, nvhe):
    assert leaf_descriptor(0, hyp_attr(prot, PLAIN), 3) == vhe
    assert leaf_descriptor(0, hyp_attr(prot, NVHE), 3) == nvhe


def test_executable_el2_pages_are_guarded_when_bti_is_on():
    assert hyp_attr(PROT_R | PROT_X, TableFeatures(bti=True)) & 1 << 50


@given(protections, features)
def test_el2_takes_exactly_the_documented_protections_and_reads_them_back(prot, feature):
    kind = prot & (PROT_DEVICE | PROT_NORMAL_NC)
    allowed = (
        prot & PROT_R
        and not prot & (PROT_PXN | PROT_UXN)
        and kind != PROT_DEVICE | PROT_NORMAL_NC
        and not (prot & PROT_X and (prot & PROT_W or kind))
    )
    attr = hyp_attr(prot, feature)
    assert (attr >= 0) == bool(allowed)
    if allowed:
        assert hyp_prot(leaf_descriptor(0x4000_0000, attr, 3), feature) == prot & PROT_RWX


@given(st.integers(0, 3), st.integers(0, PROT_SW | 0x7F))
def test_a_state_travels_in_two_software_bits(state, prot):
    carried = with_state(prot, state)
    assert state_of(carried) == state
    assert carried & ~(3 << 55) == prot & ~(3 << 55)


def test_annotations_hold_the_owner_in_bits_9_to_2():
    assert [owner_annotation(owner) for owner in range(5)] == [0, 0x4, 0x8, 0xC, 0x10]


def test_visiting_leaves_covers_the_range_once_holes_included():
    table = PageTable(FlatMemory(1 << 18), BumpAllocator(0, 1 << 18), 48)
    table.map(0x20_0000, 0, 0x20_0000, 0x700)
    table.map(0x40_1000, 0, PAGE_SIZE, 0x700)
    seen = list(visit_leaves(table, 0x3F_F000, 0x40_3000))
    assert [(a, level, bool(d & 1)) for a, level, d, _ in seen] == [
        (0x20_0000, 2, True),
        (0x40_0000, 3, False),
        (0x40_1000, 3, True),
        (0x40_2000, 3, False),
    ]
    assert list(visit_leaves(table, 0x5000, 0x5000)) == []
