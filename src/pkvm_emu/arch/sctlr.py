"""SCTLR_EL1 and SCTLR_EL2.

Source: Arm ARM (DDI 0487), "SCTLR_EL1" and "SCTLR_EL2, System Control Register".
"""

from __future__ import annotations

from pkvm_emu.arch.bitfield import Field, Register


class _Sctlr(Register, flags=True):
    """Bits that SCTLR_EL1 and SCTLR_EL2 share."""

    tidcp = Field(63)
    spintmask = Field(62)
    nmi = Field(61)
    entp2 = Field(60, label="EnTP2")
    enals = Field(56, label="EnALS")
    dssbs = Field(44)
    ata = Field(43)
    tcf = Field(41, 40)
    itfsb = Field(37)
    bt = Field(36)
    enia = Field(31, label="EnIA")
    enib = Field(30, label="EnIB")
    lsmaoe = Field(29, label="LSMAOE")
    ntlsmd = Field(28, label="nTLSMD")
    enda = Field(27, label="EnDA")
    ee = Field(25)
    eis = Field(22)
    iesb = Field(21)
    tscxt = Field(20)
    wxn = Field(19)
    endb = Field(13, label="EnDB")
    i = Field(12)
    eos = Field(11)
    naa = Field(6, label="nAA")
    sa = Field(3)
    c = Field(2)
    a = Field(1)
    m = Field(0)


class SctlrEl1(_Sctlr):
    """SCTLR_EL1."""

    epan = Field(57)
    enasr = Field(54, label="EnASR")
    tweden = Field(45, label="TWEDEn")
    ata0 = Field(42)
    tcf0 = Field(39, 38)
    bt1 = Field(36)
    bt0 = Field(35)
    uci = Field(26)
    e0e = Field(24, label="E0E")
    span = Field(23)
    ntwe = Field(18, label="nTWE")
    ntwi = Field(16, label="nTWI")
    uct = Field(15)
    dze = Field(14)
    enrctx = Field(10, label="EnRCTX")
    uma = Field(9)
    sed = Field(8)
    itd = Field(7)
    cp15ben = Field(5)
    sa0 = Field(4)


class SctlrEl2(_Sctlr):
    """SCTLR_EL2 with HCR_EL2.E2H clear or TGE clear (no EL0 controls); bits outside are RES1 in part."""


SCTLR_EL1_RES1 = 0x30D00980
"""Bits of SCTLR_EL1 that read as one on a core without the features that gave them a meaning."""
SCTLR_EL2_RES1 = 0x30C50830
"""The same for SCTLR_EL2."""
SCTLR_PAC_KEYS = 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13
"""EnIA, EnIB, EnDA, EnDB."""
SCTLR_EL2_HOST = 0x20_30ED_183D
"""What the protected hypervisor runs with, pointer authentication aside (M, C, SA, I, WXN, IESB, ITFSB, RES1)."""
