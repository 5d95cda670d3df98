"""Syndromes, saved state and vectors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch.esr import (
    CallSyndrome,
    DataAbort,
    Esr,
    ExceptionClass,
    FaultStatus,
    InstructionAbort,
    SysRegTrap,
    fault_kind,
    fault_level,
    fault_status,
)
from pkvm_emu.arch.spsr import EL0t, EL1h, EL2h, EL2t, Mode, Spsr, exception_pstate
from pkvm_emu.arch.sysreg import by_encoding
from pkvm_emu.arch.vectors import VECTORS, VectorKind, vector_name, vector_offset


def test_a_hypercall_syndrome_prints_its_class():
    assert Esr(0x5A000000).describe() == "EC=HVC64 IL=1 ISS=0x0"
    assert Esr.build(ec=ExceptionClass.HVC64, il=1) == 0x5A000000


def test_an_unknown_class_is_shown_as_a_number():
    assert Esr(0x3F << 26).describe() == "EC=0x3f IL=0 ISS=0x0"


def test_an_injected_stage2_write_abort_decodes_field_by_field():
    # The syndrome that a host sees when it writes a page the hypervisor made read-only.
    esr = Esr(0x97C880CF).detail()
    assert isinstance(esr, DataAbort)
    assert (esr.ec, esr.isv, esr.access_bytes, esr.srt, esr.sf) == (ExceptionClass.DABT_CUR, 1, 8, 8, 1)
    assert (esr.s1ptw, esr.wnr, esr.status, esr.level) == (1, 1, FaultStatus.PERMISSION_L3, 3)
    assert esr.is_permission
    assert not esr.is_translation
    assert "DFSC=PERMISSION_L3" in esr.describe()


def test_brk_syndromes_carry_the_immediate():
    assert Esr(0xF2000800).detail().imm16 == 0x800
    assert Esr(0xF2008228).detail().describe() == "EC=BRK64 IL=1 imm16=0x8228"
    assert isinstance(Esr(0x5A000000).detail(), CallSyndrome)


def test_a_trapped_register_access_names_the_register():
    trap = SysRegTrap.build(ec=ExceptionClass.SYS64, il=1, op0=3, op1=0, crn=1, crm=0, op2=1, rt=4, direction=1)
    decoded = Esr(int(trap)).detail()
    assert isinstance(decoded, SysRegTrap)
    assert by_encoding(*decoded.encoding).name == "ACTLR_EL1"
    assert decoded.is_read
    assert decoded.rt == 4


@given(kind=st.sampled_from(["translation", "permission", "access-flag", "address-size"]), level=st.integers(0, 3))
def test_fault_codes_keep_kind_and_level(kind, level):
    status = fault_status(kind, level)
    assert (fault_kind(status), fault_level(status)) == (kind, level)
    assert status.name.endswith(f"_L{level}")
    assert InstructionAbort.build(ec=0x20, ifsc=status).status is status


def test_faults_without_a_level_have_none():
    assert fault_level(FaultStatus.ALIGNMENT) is None
    assert fault_level(FaultStatus.SYNC_EXTERNAL) is None
    assert fault_level(FaultStatus.SYNC_EXTERNAL_WALK_L2) == 2
    assert fault_level(FaultStatus.TRANSLATION_LM1) == -1
    with pytest.raises(ValueError):
        fault_status("translation", 4)


def test_modes_have_their_architectural_numbers():
    assert (EL0t, EL1h, EL2t, EL2h) == (0, 5, 8, 9)
    assert [(m.el, m.uses_sp_elx) for m in (Mode.EL1t, Mode.EL2h)] == [(1, False), (2, True)]


def test_saved_state_prints_mode_flags_and_masks():
    assert Spsr(0x5 | 0x3C0 | 1 << 30 | 1 << 22).describe() == "EL1h nZcv DAIF PAN"
    assert Spsr(0).describe() == "EL0t nzcv daif"
    assert Spsr.build(m=EL2h, btype=2).describe() == "EL2h nzcv daif BTYPE=2"


def test_entry_masks_everything_and_uses_the_handler_stack():
    assert exception_pstate(2) == 0x3C9
    assert exception_pstate(1, pan=True) == 0x4003C5


@pytest.mark.parametrize(
    ("pstate", "target", "kind", "offset"),
    [
        (EL1h, 2, VectorKind.SYNC, 0x400),
        (EL0t, 1, VectorKind.SYNC, 0x400),
        (0x10, 2, VectorKind.SYNC, 0x600),
        (EL2h, 2, VectorKind.SYNC, 0x200),
        (EL2t, 2, VectorKind.SERROR, 0x180),
        (EL1h, 1, VectorKind.IRQ, 0x280),
    ],
)
def test_an_exception_enters_at_the_slot_of_its_source(pstate, target, kind, offset):
    assert vector_offset(pstate, target, kind) == offset


def test_there_are_sixteen_vectors_128_bytes_apart():
    assert sorted(VECTORS) == list(range(0, 0x800, 0x80))
    assert vector_name(0x400, 2) == "lower_64_sync"
    assert vector_name(0x284, 2) == "el2h_irq"
