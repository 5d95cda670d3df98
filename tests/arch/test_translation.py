"""Control registers and descriptors of address translation, and HCR_EL2, SCTLR."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch import descriptors as d
from pkvm_emu.arch.hcr import HOST_HCR, HOST_PROTECTED_HCR, Hcr
from pkvm_emu.arch.sctlr import SCTLR_EL2_HOST, SCTLR_EL2_RES1, SctlrEl1, SctlrEl2
from pkvm_emu.arch.tcr import TcrEl1, TcrEl2, VtcrEl2, start_level_4k, va_bits


def test_the_protected_host_runs_with_smc_trapped():
    assert HOST_PROTECTED_HCR == 0x30080080000
    assert HOST_HCR == 0x30080000000
    assert Hcr(HOST_PROTECTED_HCR).describe() == "API APK RW TSC"


def test_the_hypervisor_runs_with_wxn_and_itfsb():
    sctlr = SctlrEl2(SCTLR_EL2_HOST)
    assert (sctlr.m, sctlr.c, sctlr.sa, sctlr.i, sctlr.wxn, sctlr.iesb, sctlr.itfsb) == (1, 1, 1, 1, 1, 1, 1)
    assert sctlr & SCTLR_EL2_RES1 == SCTLR_EL2_RES1
    assert SctlrEl1.build(span=1, epan=1).describe() == "EPAN SPAN"


def test_default_host_leaves_of_ram_and_mmio():
    ram, mmio = d.S2Leaf(0x4000_0000 | 0x7FC | d.DESC_PAGE), d.S2Leaf(0x0040_0000_0000_04FD)
    assert (ram.memattr, ram.s2ap, ram.sh, ram.af, ram.executable) == (d.MemAttr.NORMAL, d.S2Access.RW, 3, 1, True)
    assert ram.address == 0x4000_0000
    assert (mmio.executable, mmio.writable, mmio.sh) == (False, True, 0)
    assert d.is_leaf(mmio, 1)
    assert not d.is_leaf(mmio, 3)


def test_a_read_only_host_page_is_readable_and_not_writable():
    leaf = d.S2Leaf(0x47F)
    assert (leaf.readable, leaf.writable, leaf.executable) == (True, False, True)
    assert leaf.describe().startswith("XN=0x0 CONT=0 DBM=0 AF=1 SH=NON S2AP=RO MEMATTR=NORMAL")


def test_nvhe_and_e2h_leaves_keep_execute_never_in_bit_54_and_53():
    assert not d.S1LeafEl2(1 << 54).executable
    assert d.S1LeafE2h(1 << 54).executable
    assert not d.S1LeafE2h(1 << 53).executable
    assert d.S1LeafE2h(1 << 54).uxn == 1
    assert not d.S1LeafEl2.build(ro=1).writable
    assert not d.S1LeafE2h.build(ap=d.AccessPermission.RO_EL1).writable


def test_software_bits_are_58_to_55():
    assert d.Descriptor.build(sw=0xF) == d.SW_BITS
    assert "SW=0x1" in d.S2Leaf.build(sw=1, valid=1).describe()


@pytest.mark.parametrize(("level", "size"), [(0, 1 << 39), (1, 1 << 30), (2, 1 << 21), (3, 1 << 12)])
def test_an_entry_covers_512_times_the_next_level(level, size):
    assert d.level_size(level) == size
    assert d.level_index(5 * size, level) == 5


def test_table_and_page_share_a_type_and_differ_by_level():
    assert d.is_table(3, 2)
    assert not d.is_table(3, 3)
    assert d.is_leaf(3, 3)
    assert d.is_leaf(1, 2)
    assert not d.is_leaf(0, 3)


@given(page=st.integers(0, (1 << 40) - 1), attributes=st.integers(0, 0xFFF))
def test_lpa2_addresses_round_trip(page, attributes):
    entry = d.with_lpa2_address(0x0040_0000_0000_0000 | attributes, page << 12)
    assert d.lpa2_address(entry) == page << 12
    assert entry & 0xCFF == attributes & 0xCFF


def test_region_sizes_and_start_levels():
    assert va_bits(TcrEl1.build(t0sz=25).t0sz) == 39
    assert [start_level_4k(bits) for bits in (30, 39, 40, 48)] == [2, 1, 0, 0]
    assert VtcrEl2.build(sl0=1).start_level == 1
    assert VtcrEl2.build(ds=1, sl2=1).start_level == -1


def test_output_sizes_come_from_the_right_field_of_each_layout():
    assert TcrEl1.build(ips=5).pa_bits == 48
    assert TcrEl2.build(ps=2).pa_bits == 40
    assert VtcrEl2.build(ps=6).pa_bits == 52
