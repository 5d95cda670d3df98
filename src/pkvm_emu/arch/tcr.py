"""Translation control: TCR_EL1 (and TCR_EL2 under E2H), TCR_EL2 without E2H, VTCR_EL2.

Source: Arm ARM (DDI 0487), "TCR_EL1", "TCR_EL2", "VTCR_EL2".
"""

from __future__ import annotations

from enum import IntEnum

from pkvm_emu.arch.bitfield import Field, Register


class Granule0(IntEnum):
    """TG0."""

    G4K = 0
    G64K = 1
    G16K = 2


class Granule1(IntEnum):
    """TG1: another numbering than TG0."""

    G16K = 1
    G4K = 2
    G64K = 3


class Shareability(IntEnum):
    """SH0, SH1."""

    NON = 0
    OUTER = 2
    INNER = 3


class Cacheability(IntEnum):
    """IRGN, ORGN."""

    NC = 0
    WBWA = 1
    WT = 2
    WB = 3


PA_BITS = (32, 36, 40, 42, 44, 48, 52, 56)
"""Physical address bits for each value of IPS/PS (and of ID_AA64MMFR0_EL1.PARange)."""


class TcrEl1(Register):
    """TCR_EL1; also TCR_EL2 with HCR_EL2.E2H set."""

    ds = Field(59)
    tcma1 = Field(58)
    tcma0 = Field(57)
    e0pd1 = Field(56)
    e0pd0 = Field(55)
    nfd1 = Field(54)
    nfd0 = Field(53)
    tbid1 = Field(52)
    tbid0 = Field(51)
    hwu1 = Field(50, 47)
    hwu0 = Field(46, 43)
    hpd1 = Field(42)
    hpd0 = Field(41)
    hd = Field(40)
    ha = Field(39)
    tbi1 = Field(38)
    tbi0 = Field(37)
    as_ = Field(36, label="AS")
    ips = Field(34, 32)
    tg1 = Field(31, 30, Granule1)
    sh1 = Field(29, 28, Shareability)
    orgn1 = Field(27, 26, Cacheability)
    irgn1 = Field(25, 24, Cacheability)
    epd1 = Field(23)
    a1 = Field(22)
    t1sz = Field(21, 16)
    tg0 = Field(15, 14, Granule0)
    sh0 = Field(13, 12, Shareability)
    orgn0 = Field(11, 10, Cacheability)
    irgn0 = Field(9, 8, Cacheability)
    epd0 = Field(7)
    t0sz = Field(5, 0)

    @property
    def pa_bits(self) -> int:
        """Output address size in bits."""
        return PA_BITS[self.ips]


class TcrEl2(Register):
    """TCR_EL2 with HCR_EL2.E2H clear: one range, one privilege."""

    mtx = Field(33)
    ds = Field(32)
    tcma = Field(30)
    tbid = Field(29)
    hwu = Field(28, 25)
    hpd = Field(24)
    hd = Field(22)
    ha = Field(21)
    tbi = Field(20)
    ps = Field(18, 16)
    tg0 = Field(15, 14, Granule0)
    sh0 = Field(13, 12, Shareability)
    orgn0 = Field(11, 10, Cacheability)
    irgn0 = Field(9, 8, Cacheability)
    t0sz = Field(5, 0)

    @property
    def pa_bits(self) -> int:
        """Output address size in bits."""
        return PA_BITS[self.ps]


TCR_EL2_RES1 = 1 << 31 | 1 << 23
"""Bits of the non-E2H TCR_EL2 that read as one."""


class VtcrEl2(Register):
    """VTCR_EL2."""

    sl2 = Field(33)
    ds = Field(32)
    nsa = Field(30)
    nsw = Field(29)
    hwu62 = Field(28)
    hwu61 = Field(27)
    hwu60 = Field(26)
    hwu59 = Field(25)
    hd = Field(22)
    ha = Field(21)
    vs = Field(19)
    ps = Field(18, 16)
    tg0 = Field(15, 14, Granule0)
    sh0 = Field(13, 12, Shareability)
    orgn0 = Field(11, 10, Cacheability)
    irgn0 = Field(9, 8, Cacheability)
    sl0 = Field(7, 6)
    t0sz = Field(5, 0)

    @property
    def pa_bits(self) -> int:
        """Output address size in bits."""
        return PA_BITS[self.ps]

    @property
    def start_level(self) -> int:
        """Level of the first lookup with 4 KiB pages (SL2 is taken into account when DS is set)."""
        if self.ds and self.sl2:
            return -1
        return {0: 2, 1: 1, 2: 0, 3: 3}[self.sl0]


VTCR_EL2_RES1 = 1 << 31
"""Bits of VTCR_EL2 that read as one."""


def va_bits(tsz: int) -> int:
    """Address bits that a region with this TxSZ translates."""
    return 64 - tsz


def start_level_4k(bits: int) -> int:
    """First lookup level of a stage-1 walk with 4 KiB pages for an input of ``bits`` bits (39 → 1, 48 → 0)."""
    return 3 - (bits - 13) // 9
