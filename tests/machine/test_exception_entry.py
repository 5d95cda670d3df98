"""Exception entry: the registers that a vector finds, for every class that a pKVM module can cause.

Expected values are those of the Arm ARM (D1.3, D24.2.40): written out, not computed by the code under test.
"""

from __future__ import annotations

import pytest
from bare import (
    CODE,
    DATA,
    DATA_NX_STAGE2,
    EL0T,
    EL1H,
    EL1T,
    EL2H,
    EL2T,
    HCR_TACR,
    HCR_TWI,
    HCR_VM,
    RODATA,
    STACK,
    STAGE2_HOLE,
    STAGE2_RO,
    UNMAPPED,
    Bare,
)

from pkvm_emu.machine.engine import BusError

LOWER, SAME_SP0, SAME_SPX = 0x400, 0x000, 0x200
NZCV, PAN = 0xF << 28, 1 << 22
HVC64, SMC64, SVC64, SYSREG, WFX, PAC_TRAP, BTI, UNKNOWN, BRK = 0x16, 0x17, 0x15, 0x18, 0x01, 0x09, 0x0D, 0x00, 0x3C
IABT_LOW, IABT_CUR, DABT_LOW, DABT_CUR = 0x20, 0x21, 0x24, 0x25


@pytest.fixture(params=["hvhe", "nvhe"])
def bare(request: pytest.FixtureRequest) -> Bare:
    return Bare(hvhe=request.param == "hvhe")


def test_hvc_from_el1_enters_el2_with_the_next_instruction_as_return_address(bare: Bare) -> None:
    entry = bare.take("nop\nhvc #0x1234", EL1H)
    assert (entry.el, entry.vector) == (2, LOWER)
    assert (entry.ec, entry.il, entry.iss) == (HVC64, 1, 0x1234)
    assert entry.elr == bare.va(CODE, 1) + 8
    assert entry.spsr == EL1H
    assert entry.pstate == EL2H
    assert entry.sp == bare.va(STACK, 2)
    assert bare.engine.read("sp_el1") == bare.va(STACK, 1)


def test_hvc_from_el2_goes_to_el2s_own_vectors(bare: Bare) -> None:
    entry = bare.take("hvc #7", EL2H)
    assert (entry.el, entry.vector, entry.ec, entry.iss) == (2, SAME_SPX, HVC64, 7)
    assert (entry.elr, entry.spsr) == (bare.va(CODE, 2) + 4, EL2H)


def test_trapped_smc_returns_to_the_smc_itself(bare: Bare) -> None:
    entry = bare.take("nop\nsmc #3", EL1H)
    assert (entry.el, entry.vector, entry.ec, entry.il, entry.iss) == (2, LOWER, SMC64, 1, 3)
    assert entry.elr == bare.va(CODE, 1) + 4


def test_svc_from_el0_and_from_el1_enter_el1(bare: Bare) -> None:
    from_el0 = bare.take("svc #0x42", EL0T, pc=CODE)
    assert (from_el0.el, from_el0.vector, from_el0.ec, from_el0.iss) == (1, LOWER, SVC64, 0x42)
    assert (from_el0.elr, from_el0.spsr, from_el0.sp) == (CODE + 4, EL0T, bare.va(STACK, 1))
    from_el1 = bare.take("svc #1", EL1H)
    assert (from_el1.el, from_el1.vector, from_el1.ec, from_el1.pstate) == (1, SAME_SPX, SVC64, EL1H)


def test_brk_stays_at_the_instruction_and_goes_to_its_own_level(bare: Bare) -> None:
    at_el1 = bare.take("brk #0x800", EL1H)
    assert (at_el1.el, at_el1.vector, at_el1.esr) == (1, SAME_SPX, 0xF200_0800)
    assert at_el1.elr == bare.va(CODE, 1)
    at_el2 = bare.take("brk #0x8228", EL2H)
    assert (at_el2.el, at_el2.vector, at_el2.esr) == (2, SAME_SPX, 0xF200_8228)
    assert at_el2.elr == bare.va(CODE, 2)


@pytest.mark.parametrize("pstate", [EL1H, EL2H], ids=["EL1", "EL2"])
def test_an_undefined_instruction_has_class_zero(bare: Bare, pstate: int) -> None:
    entry = bare.take(".word 0", pstate)
    level = pstate >> 2 & 3
    assert (entry.el, entry.vector, entry.esr) == (level, SAME_SPX, 1 << 25)
    assert entry.elr == bare.va(CODE, level)


def test_a_trapped_system_register_says_which_one_and_which_general_register(bare: Bare) -> None:
    bare.set_hcr(HCR_TACR)
    read = bare.take("mrs x7, ACTLR_EL1", EL1H)
    assert (read.el, read.vector, read.ec, read.il) == (2, LOWER, SYSREG, 1)
    # ACTLR_EL1 is op0 3, op1 0, CRn 1, CRm 0, op2 1; direction bit 0 is 1 for a read.
    assert read.iss == 3 << 20 | 1 << 17 | 0 << 14 | 1 << 10 | 7 << 5 | 0 << 1 | 1
    assert read.elr == bare.va(CODE, 1)
    write = bare.take("msr ACTLR_EL1, x9", EL1H)
    assert write.iss == 3 << 20 | 1 << 17 | 0 << 14 | 1 << 10 | 9 << 5 | 0 << 1


def test_pointer_authentication_is_trapped_where_hcr_withholds_it(bare: Bare) -> None:
    bare.engine.write_sysreg("HCR_EL2", bare.engine.read_sysreg("HCR_EL2") & ~(1 << 41))
    bare.engine.write_sysreg("SCTLR_EL1", bare.engine.read_sysreg("SCTLR_EL1") | 1 << 31)
    entry = bare.take("nop\n.word 0xd503233f", EL1H)  # paciasp
    assert (entry.el, entry.vector, entry.esr) == (2, LOWER, PAC_TRAP << 26 | 1 << 25)
    assert entry.elr == bare.va(CODE, 1) + 4


def test_wfi_is_trapped_under_twi(bare: Bare) -> None:
    bare.set_hcr(HCR_TWI)
    entry = bare.take("nop\nwfi", EL1H)
    assert (entry.el, entry.vector, entry.ec, entry.il) == (2, LOWER, WFX, 1)
    assert entry.iss & 3 == 0  # TI: WFI
    assert entry.elr == bare.va(CODE, 1) + 4


@pytest.mark.parametrize(
    ("source", "area", "fsc", "is_write"),
    [
        ("ldr x1, [x0]", UNMAPPED, 0x07, 0),
        ("str x1, [x0]", UNMAPPED, 0x07, 1),
        ("str x1, [x0]", RODATA, 0x0F, 1),
    ],
    ids=["translation fault of a load", "translation fault of a store", "permission fault of a store"],
)
@pytest.mark.parametrize("pstate", [EL1H, EL2H], ids=["EL1", "EL2"])
def test_a_stage1_data_abort_of_the_same_level(
    bare: Bare, pstate: int, source: str, area: int, fsc: int, is_write: int
) -> None:
    level = pstate >> 2 & 3
    address = bare.va(area, level) + 0x128
    entry = bare.take(source, pstate, x0=address)
    assert (entry.el, entry.vector, entry.ec, entry.il) == (level, SAME_SPX, DABT_CUR, 1)
    # ISV and what it qualifies are for stage-2 aborts only.
    assert entry.iss == is_write << 6 | fsc
    assert (entry.far, entry.elr) == (address, bare.va(CODE, level))


@pytest.mark.parametrize("pstate", [EL1H, EL2H], ids=["EL1", "EL2"])
@pytest.mark.parametrize(("area", "fsc"), [(UNMAPPED, 0x07), (DATA, 0x0F)], ids=["translation", "permission"])
def test_a_stage1_instruction_abort_of_the_same_level(bare: Bare, pstate: int, area: int, fsc: int) -> None:
    level = pstate >> 2 & 3
    target = bare.va(area, level) + 0x40
    entry = bare.take("br x0", pstate, x0=target)
    assert (entry.el, entry.vector, entry.ec, entry.il, entry.iss) == (level, SAME_SPX, IABT_CUR, 1, fsc)
    assert (entry.far, entry.elr) == (target, target)


def test_aborts_of_el0_go_to_el1_as_lower_level_aborts(bare: Bare) -> None:
    data = bare.take("ldr x1, [x0]", EL0T, pc=CODE, x0=0x1234_5678)
    assert (data.el, data.vector, data.ec, data.far) == (1, LOWER, DABT_LOW, 0x1234_5678)
    fetch = bare.take("br x0", EL0T, pc=CODE, x0=0x1234_5000)
    assert (fetch.el, fetch.vector, fetch.ec, fetch.far) == (1, LOWER, IABT_LOW, 0x1234_5000)


@pytest.mark.parametrize(
    ("source", "srt", "size", "is_write"),
    [
        ("ldr x5, [x0]", 5, 3, 0),
        ("ldr w6, [x0]", 6, 2, 0),
        ("ldrh w7, [x0]", 7, 1, 0),
        ("ldrb w8, [x0]", 8, 0, 0),
        ("str x9, [x0]", 9, 3, 1),
        ("strb w10, [x0]", 10, 0, 1),
    ],
)
def test_a_stage2_translation_fault_describes_the_access(
    bare: Bare, source: str, srt: int, size: int, is_write: int
) -> None:
    bare.set_hcr(HCR_VM)
    address = bare.va(STAGE2_HOLE, 1) + 0x2A8
    entry = bare.take(source, EL1H, x0=address)
    assert (entry.el, entry.vector, entry.ec, entry.il) == (2, LOWER, DABT_LOW, 1)
    iss = entry.iss
    assert iss & 0x3F == 0x07  # translation fault, level 3
    assert iss >> 6 & 1 == is_write
    assert iss >> 7 & 1 == 0  # S1PTW
    assert (iss >> 24 & 1, iss >> 22 & 3, iss >> 16 & 0x1F) == (1, size, srt)  # ISV, SAS, SRT
    assert iss >> 15 & 1 == (size == 3)  # SF
    assert entry.far == address
    assert entry.hpfar == bare.pa(STAGE2_HOLE, 1) >> 12 << 4
    assert (entry.elr, entry.spsr) == (bare.va(CODE, 1), EL1H)


def test_a_stage2_fault_of_a_pair_has_no_valid_syndrome(bare: Bare) -> None:
    bare.set_hcr(HCR_VM)
    entry = bare.take("ldp x1, x2, [x0]", EL1H, x0=bare.va(STAGE2_HOLE, 1))
    assert (entry.ec, entry.iss >> 24 & 1, entry.iss & 0x3F) == (DABT_LOW, 0, 0x07)


def test_a_stage2_permission_fault_of_a_write_reads_on_fine(bare: Bare) -> None:
    bare.set_hcr(HCR_VM)
    address = bare.va(STAGE2_RO, 1) + 0x10
    entry = bare.take("ldr x1, [x0]\nstr x1, [x0]", EL1H, x0=address)
    assert (entry.el, entry.ec, entry.iss & 0x7F) == (2, DABT_LOW, 1 << 6 | 0x0F)
    assert (entry.far, entry.hpfar) == (address, bare.pa(STAGE2_RO, 1) >> 12 << 4)
    assert entry.elr == bare.va(CODE, 1) + 4


def test_a_stage2_fetch_fault_is_an_instruction_abort_of_the_lower_level(bare: Bare) -> None:
    bare.set_hcr(HCR_VM)
    target = bare.va(DATA_NX_STAGE2, 1) + 0x80
    entry = bare.take("br x0", EL1H, x0=target)
    assert (entry.el, entry.vector, entry.ec, entry.iss) == (2, LOWER, IABT_LOW, 0x0F)
    assert (entry.far, entry.elr, entry.hpfar) == (target, target, bare.pa(DATA_NX_STAGE2, 1) >> 12 << 4)


def test_a_stage2_fault_of_a_stage1_walk_names_the_table(bare: Bare) -> None:
    bare.set_hcr(HCR_VM)
    leaf = bare.el1.walk(bare.va(DATA, 1))
    bare.stage2.unmap(leaf.entry & ~0xFFF, 4096)
    entry = bare.take("ldr x1, [x0]", EL1H, pc=bare.va(CODE, 1), x0=bare.va(DATA, 1) + 8)
    assert entry.el == 2
    assert entry.iss >> 7 & 1 == 1  # S1PTW
    assert entry.hpfar == leaf.entry >> 12 << 4


def test_el2_is_not_subject_to_the_hosts_stage2(bare: Bare) -> None:
    bare.set_hcr(HCR_VM)
    bare.stage2.unmap(bare.pa(DATA, 2), 4096)
    entry = bare.take("mov x1, #77\nstr x1, [x0]\nldr x2, [x0]\nhvc #0", EL2H, x0=bare.va(DATA, 2))
    assert entry.ec == HVC64
    assert bare.engine.read("x2") == 77


@pytest.mark.parametrize(
    ("pstate", "source", "vector"),
    [(EL1T, "svc #0", SAME_SP0), (EL2T, "hvc #0", SAME_SP0), (EL1T, "hvc #0", LOWER)],
    ids=["EL1t to EL1", "EL2t to EL2", "EL1t to EL2"],
)
def test_code_on_sp_el0_enters_through_the_sp0_vectors_and_finds_the_right_stack(
    bare: Bare, pstate: int, source: str, vector: int
) -> None:
    level = pstate >> 2 & 3
    sp_el0 = bare.va(STACK, level) - 0x400
    bare.engine.write("sp_el0", sp_el0)
    entry = bare.take(f"sub sp, sp, #0x20\n{source}", pstate)
    assert (entry.vector, entry.spsr) == (vector, pstate)
    assert entry.sp == bare.va(STACK, entry.el)
    assert bare.engine.read("sp_el0") == sp_el0 - 0x20


@pytest.mark.parametrize("source", ["svc #0", "hvc #0"], ids=["to EL1", "to EL2"])
def test_each_level_keeps_its_own_stack_pointer(bare: Bare, source: str) -> None:
    entry = bare.take(f"sub sp, sp, #0x40\n{source}", EL1H)
    expected = bare.va(STACK, 1) - 0x40
    assert entry.sp == (expected if entry.el == 1 else bare.va(STACK, 2))
    assert bare.engine.read("sp_el1") == expected
    bare.enter(EL2H)
    assert bare.engine.read("sp") == bare.va(STACK, 2)


def test_the_spsr_keeps_flags_and_masks_and_the_entry_masks_everything(bare: Bare) -> None:
    entry = bare.take("hvc #0", NZCV | 0x5)
    assert entry.spsr == NZCV | 0x5
    assert entry.pstate & 0x3CF == EL2H


@pytest.mark.parametrize("source", ["svc #0", "hvc #0"], ids=["to EL1", "to EL2"])
def test_pan_is_kept_and_set_only_where_the_level_asks_for_it(bare: Bare, source: str) -> None:
    assert bare.take(source, EL1H | PAN).pstate & PAN
    assert not bare.take(source, EL1H).pstate & PAN
    bare.core.entry.sets_pan[1] = True
    assert bool(bare.take(source, EL1H).pstate & PAN) == (source == "svc #0")


def test_far_is_left_alone_by_what_is_no_abort(bare: Bare) -> None:
    bare.engine.write("far_el2", 0xABCD)
    assert bare.take("hvc #0", EL1H).far == 0xABCD
    bare.engine.write("far_el1", 0x1234)
    assert bare.take("brk #1", EL1H).far == 0x1234


def test_a_branch_to_what_is_no_landing_pad_on_a_guarded_page(bare: Bare) -> None:
    bare.engine.write_sysreg("SCTLR_EL1", bare.engine.read_sysreg("SCTLR_EL1") | 3 << 35)
    bare.el1.protect(bare.va(CODE, 1), 4096, 1 << 50, 0)
    entry = bare.take("br x0\nnop\nnop", EL1H, x0=bare.va(CODE, 1) + 8)
    assert (entry.el, entry.vector, entry.ec, entry.il) == (1, SAME_SPX, BTI, 1)
    assert entry.elr == bare.va(CODE, 1) + 8


def test_an_asynchronous_exception_uses_the_vector_of_its_kind(bare: Bare) -> None:
    bare.enter(EL1H)
    bare.engine.write("pc", bare.va(CODE, 1))
    for kind in (0x80, 0x100, 0x180):
        bare.enter(0x5)
        bare.engine.write("pc", bare.va(CODE, 1) + 0x20)
        bare.core.take_exception(2, 0, 0xBE00_0000 if kind == 0x180 else 0, 0, kind)
        assert bare.engine.read("pc") == bare.engine.read("vbar_el2") + LOWER + kind
        assert bare.engine.read("elr_el2") == bare.va(CODE, 1) + 0x20


def test_eret_goes_back_to_where_and_how_it_was(bare: Bare) -> None:
    entry = bare.take("sub sp, sp, #0x10\nhvc #0\nadd x3, x3, #1\nsvc #5", NZCV | EL1H, x3=9)
    assert entry.el == 2
    bare.machine.patch_code(bare.pa(DATA_NX_STAGE2, 2), bytes.fromhex("e0039fd6"))  # eret
    bare.core.run(bare.va(DATA_NX_STAGE2, 2))
    back = bare.entry()
    assert (back.el, back.ec, back.spsr) == (1, SVC64, NZCV | EL1H)
    assert bare.engine.read("x3") == 10
    assert bare.engine.read("sp") == bare.va(STACK, 1) - 0x10


def test_memory_that_does_not_exist_ends_the_run_with_the_place(bare: Bare) -> None:
    bare.core.describe = lambda va, el: f"code+{va - bare.va(CODE, el):#x} at EL{el}"
    with pytest.raises(BusError, match=r"code\+0x4 at EL1 reaches a physical address without RAM or device"):
        bare.take("nop\nldr x1, [x0]", EL1H, x0=bare.va(0xA0000, 1))
