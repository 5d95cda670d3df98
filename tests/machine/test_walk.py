"""Software translation from register values, against tables that the builder made."""

from __future__ import annotations

import pytest

from pkvm_emu.machine.pagetable import PAGE_SIZE, BumpAllocator, FlatMemory, PageTable
from pkvm_emu.machine.walk import (
    Access,
    Fault,
    FaultKind,
    Regime,
    Stage1Regs,
    Stage2Regs,
    Translation,
    translate,
    translate_stage1,
    translate_stage2,
)

PAGES = 64
AF, RO, EL0, PXN, UXN = 1 << 10, 1 << 7, 1 << 6, 1 << 53, 1 << 54
S2_RWX, S2_RO, S2_XN = 0x4FC, 0x47C, 1 << 54
VTCR = 0x80053590  # 48-bit IPA, start level 0, 48-bit PA
TCR_EL1 = 0x5_B519_3519  # T0SZ = T1SZ = 25, 4 KiB granules, 48-bit PA
TCR_EL2 = 0x8085_3510  # T0SZ = 16
UPPER = 0xFFFF_FF80_0000_0000


@pytest.fixture
def memory():
    return FlatMemory(PAGES * PAGE_SIZE)


def build(memory, first_page, last_page, va_bits, **kwargs):
    return PageTable(memory, BumpAllocator(first_page * PAGE_SIZE, last_page * PAGE_SIZE), va_bits, **kwargs)


def kind(result):
    assert isinstance(result, Fault), result
    return result.stage, result.kind, result.level


def test_stage2_off_changes_nothing(memory):
    assert translate_stage2(memory, 0x1234, vttbr=0, vtcr=0, hcr=0).pa == 0x1234


def test_stage2_finds_blocks_and_pages_with_their_permissions(memory):
    table = build(memory, 0, 16, 48)
    table.map(1 << 30, 1 << 30, 1 << 30, S2_RWX)
    table.map(0x5000, 0x5000, PAGE_SIZE, S2_RO | S2_XN)
    block = translate_stage2(memory, (1 << 30) + 0x123, vttbr=table.root, vtcr=VTCR)
    assert block == Translation((1 << 30) + 0x123, 1, 1 << 30 | S2_RWX | 1, True, True, True, 0xF)
    page = {a: translate_stage2(memory, 0x5008, vttbr=table.root, vtcr=VTCR, access=a) for a in Access}
    assert page[Access.READ].pa == 0x5008
    assert kind(page[Access.WRITE]) == (2, FaultKind.PERMISSION, 3)
    assert page[Access.WRITE].fsc == 0x0F
    assert kind(page[Access.EXECUTE]) == (2, FaultKind.PERMISSION, 3)


def test_stage2_faults_name_the_level_and_keep_the_annotation(memory):
    table = build(memory, 0, 16, 48)
    table.map(0x5000, 0x5000, PAGE_SIZE, S2_RWX)
    memory.write_u64(table.walk(0x5000).entry, 0x4)
    fault = translate_stage2(memory, 0x5000, vttbr=table.root, vtcr=VTCR)
    assert kind(fault) == (2, FaultKind.TRANSLATION, 3)
    assert (fault.descriptor, fault.fsc) == (0x4, 0x07)
    assert kind(translate_stage2(memory, 1 << 40, vttbr=table.root, vtcr=VTCR)) == (2, FaultKind.TRANSLATION, 0)
    assert kind(translate_stage2(memory, 1 << 50, vttbr=table.root, vtcr=VTCR)) == (2, FaultKind.TRANSLATION, 0)


def test_stage2_concatenated_root_pages(memory):
    table = build(memory, 0, 16, 40, start_level=1)
    table.map(1 << 39, 1 << 39, 1 << 30, S2_RWX)
    vtcr = VTCR & ~0xFF | 24 | 1 << 6
    assert translate_stage2(memory, (1 << 39) + 7, vttbr=table.root, vtcr=vtcr).pa == (1 << 39) + 7


@pytest.fixture
def el1(memory):
    lower = build(memory, 0, 8, 39)
    upper = build(memory, 8, 16, 39, va_base=UPPER)
    upper.map(UPPER, 0x1000_0000, 0x20_0000, AF)
    upper.map(UPPER + 0x40_0000, 0x2000_0000, PAGE_SIZE, AF | RO | PXN | UXN)
    lower.map(0x1000, 0x3000_0000, PAGE_SIZE, AF | EL0 | RO)
    lower.map(0x2000, 0x3000_1000, PAGE_SIZE, AF | EL0)
    lower.map(0x3000, 0x3000_2000, PAGE_SIZE, 0)
    return Stage1Regs(ttbr0=lower.root | 0x1_0000_0000_0000, ttbr1=upper.root | 1, tcr=TCR_EL1)


def test_el1_uses_both_halves_and_ignores_asid_and_cnp(memory, el1):
    assert translate_stage1(memory, UPPER + 0x1234, el1).pa == 0x1000_1234
    assert translate_stage1(memory, 0x1008, el1, user=True).pa == 0x3000_0008
    assert kind(translate_stage1(memory, 1 << 45, el1)) == (1, FaultKind.TRANSLATION, 1)
    assert kind(translate_stage1(memory, UPPER - PAGE_SIZE, el1)) == (1, FaultKind.TRANSLATION, 1)


@pytest.mark.parametrize(
    ("va", "user", "allowed"),
    [
        (UPPER, False, "rwx"),
        (UPPER, True, "x"),
        (UPPER + 0x40_0000, False, "r"),
        (0x1000, True, "rx"),
        (0x2000, True, "rwx"),
        (0x2000, False, "rw"),
    ],
)
def test_el1_permissions(memory, el1, va, user, allowed):
    ask = {"r": Access.READ, "w": Access.WRITE, "x": Access.EXECUTE}
    got = [n for n, a in ask.items() if isinstance(translate_stage1(memory, va, el1, access=a, user=user), Translation)]
    assert "".join(got) == allowed


def test_a_clear_access_flag_faults_unless_hardware_manages_it(memory, el1):
    assert kind(translate_stage1(memory, 0x3000, el1)) == (1, FaultKind.ACCESS_FLAG, 3)
    managed = Stage1Regs(ttbr0=el1.ttbr0, ttbr1=el1.ttbr1, tcr=TCR_EL1 | 1 << 39)
    assert translate_stage1(memory, 0x3000, managed).pa == 0x3000_2000


def test_disabled_walks_other_granules_and_large_addresses(memory, el1):
    def with_tcr(tcr):
        return Stage1Regs(ttbr0=el1.ttbr0, ttbr1=el1.ttbr1, tcr=tcr)

    assert kind(translate_stage1(memory, 0x1000, with_tcr(TCR_EL1 | 1 << 7)))[1] is FaultKind.TRANSLATION
    assert kind(translate_stage1(memory, 0x1000, with_tcr(TCR_EL1 | 1 << 14)))[1] is FaultKind.GRANULE
    small = with_tcr(TCR_EL1 & ~(7 << 32))
    lower = PageTable(memory, BumpAllocator(20 * PAGE_SIZE, 24 * PAGE_SIZE), 39)
    lower.map(0, 1 << 40, PAGE_SIZE, AF)
    far = Stage1Regs(ttbr0=lower.root, tcr=small.tcr)
    assert kind(translate_stage1(memory, 0, far)) == (1, FaultKind.ADDRESS_SIZE, 3)


def test_wxn_takes_execution_from_writable_pages(memory, el1):
    regs = Stage1Regs(ttbr0=el1.ttbr0, ttbr1=el1.ttbr1, tcr=TCR_EL1, sctlr=1 | 1 << 19)
    assert not translate_stage1(memory, UPPER, regs).executable


def test_el2_with_and_without_e2h(memory):
    table = build(memory, 0, 8, 48)
    table.map(0x4000_0000, 0x4000_0000, PAGE_SIZE, AF | EL0 | UXN)
    plain = Stage1Regs(ttbr0=table.root, tcr=TCR_EL2, regime=Regime.EL2)
    found = translate_stage1(memory, 0x4000_0010, plain)
    assert (found.pa, found.readable, found.writable, found.executable) == (0x4000_0010, True, True, False)
    vhe = Stage1Regs(ttbr0=table.root, tcr=0x5_0080_3510, regime=Regime.EL20)
    assert translate_stage1(memory, 0x4000_0010, vhe).pa == 0x4000_0010


def test_both_stages_together_and_a_stage2_fault_on_a_stage1_table(memory, el1):
    host = build(memory, 32, 60, 48)
    host.map(0, 0, 0x20_0000, S2_RWX)
    host.map(0x1000_0000, 0x1000_0000, 0x20_0000, S2_RO)
    stage2 = Stage2Regs(vttbr=host.root, vtcr=VTCR)
    assert translate(memory, UPPER + 8, el1, stage2, access=Access.READ).pa == 0x1000_0008
    fault = translate(memory, UPPER + 8, el1, stage2, access=Access.WRITE)
    assert kind(fault) == (2, FaultKind.PERMISSION, 2)
    assert (fault.address, fault.ipa) == (UPPER + 8, 0x1000_0008)
    host.unmap(el1.ttbr1 & ~0xFFF, PAGE_SIZE)
    walk_fault = translate(memory, UPPER + 8, el1, stage2)
    assert kind(walk_fault) == (2, FaultKind.TRANSLATION, 3)
    assert walk_fault.on_walk
    assert "stage-1 table walk" in str(walk_fault)
