"""The table of system registers."""

import struct

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch import insn
from pkvm_emu.arch.sysreg import SYSREGS, by_encoding, sysreg

WRITE_ONLY = {
    *("ICC_EOIR0_EL1", "ICC_EOIR1_EL1", "ICC_DIR_EL1", "ICC_SGI1R_EL1", "ICC_ASGI1R_EL1", "ICC_SGI0R_EL1"),
    *("PMSWINC_EL0", "OSLAR_EL1"),
}

EL2_STEMS = """
SCTLR ACTLR HCR HCRX MDCR CPTR HSTR HACR VTTBR VTCR VPIDR VMPIDR TPIDR MAIR AMAIR TCR TTBR0 TTBR1 ESR FAR
HPFAR ELR SPSR VBAR HFGRTR HFGWTR HFGITR HDFGRTR HDFGWTR CNTHCTL CNTVOFF CNTHP_CTL CNTHV_CTL VNCR
ICH_HCR ICH_VTR ICH_VMCR ICC_SRE CONTEXTIDR ZCR AFSR0 AFSR1 RMR
"""


@pytest.fixture(scope="module")
def disassembler():
    return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)


def operands(disassembler, word):
    (found,) = disassembler.disasm(struct.pack("<I", word), 0)
    return found.mnemonic, found.op_str.upper().replace(" ", "")


def test_the_disassembler_agrees_with_every_encoding_whose_name_it_knows(disassembler):
    unknown = []
    for reg in SYSREGS.values():
        if reg.name in WRITE_ONLY:
            mnemonic, text = operands(disassembler, reg.msr(7))
            assert (mnemonic, text) == ("msr", f"{reg.name},X7")
            continue
        mnemonic, text = operands(disassembler, reg.mrs(7))
        assert mnemonic == "mrs"
        if text != f"X7,{reg.name}":
            assert text == f"X7,{reg.generic_name}", reg.name
            unknown.append(reg.name)
    assert len(unknown) < 40, unknown


def test_no_two_registers_share_an_encoding():
    assert len({reg.encoding for reg in SYSREGS.values()}) == len(SYSREGS)


@pytest.mark.parametrize("name", EL2_STEMS.split())
def test_every_el2_register_a_hypervisor_needs_is_there(name):
    reg = sysreg(f"{name}_EL2")
    assert reg.op1 == 4
    assert reg.el == 2


def test_names_are_found_in_any_case_and_by_encoding():
    reg = sysreg("vbar_el2")
    assert reg is SYSREGS["VBAR_EL2"] is by_encoding(3, 4, 12, 0, 0)
    assert reg.key == (12, 0, 3, 4, 0)


def test_the_generic_spelling_is_taken_for_any_encoding():
    assert sysreg("S3_4_C1_C1_0").name == "HCR_EL2"
    unnamed = sysreg("s3_7_c15_c2_1")
    assert unnamed.encoding == (3, 7, 15, 2, 1)
    assert by_encoding(3, 7, 15, 2, 1) is None


def test_an_unknown_name_is_a_keyerror_that_offers_the_nearest():
    with pytest.raises(KeyError, match=r"did you mean .*HCR_EL2"):
        sysreg("HCRR_EL2")
    with pytest.raises(KeyError, match="no system register"):
        sysreg("S9_0_C0_C0_0")


@given(name=st.sampled_from(sorted(SYSREGS)), rt=st.integers(0, 31))
def test_mrs_and_msr_words_decode_to_what_was_encoded(name, rt):
    reg = sysreg(name)
    assert insn.sysreg_access(reg.mrs(rt)) == (True, reg, rt)
    assert insn.sysreg_access(reg.msr(rt)) == (False, reg, rt)


def test_banked_stack_pointers_belong_to_the_level_above():
    assert [sysreg(name).el for name in ("SP_EL0", "SP_EL1", "SP_EL2")] == [1, 2, 3]
    assert sysreg("SCTLR_EL12").el == 2
    assert sysreg("CNTVCT_EL0").el == 0
