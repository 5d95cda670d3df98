"""Translation table descriptors with 4 KiB pages: stage-1 of EL1, of EL2 (nVHE and E2H), and stage-2.

Source: Arm ARM (DDI 0487), chapter D8; the software bits are those of arch/arm64/include/asm/kvm_pgtable.h.

>>> S2Leaf(0x400004FF).describe()
'XN=0x0 CONT=0 DBM=0 AF=1 SH=NON S2AP=RW MEMATTR=NORMAL PAGE=1 VALID=1 OA=0x40000000'
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from pkvm_emu.arch.bitfield import Field, Register
from pkvm_emu.arch.tcr import Shareability

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ENTRIES_PER_TABLE = 512
LAST_LEVEL = 3

DESC_VALID = 1
DESC_TYPE_MASK = 3
DESC_TABLE = 3
DESC_BLOCK = 1
DESC_PAGE = 3

SW_BITS = 0xF << 55
"""The four bits (58:55) that hardware leaves to software in every descriptor."""
ADDR_MASK_48 = 0x0000_FFFF_FFFF_F000
"""Bits 47:12, the address of a page or of a table."""
INVALID_OWNER_SHIFT = 2
INVALID_OWNER_MASK = 0xFF << INVALID_OWNER_SHIFT
"""Where an invalid host stage-2 entry keeps the id of the component that owns the page (bits 9:2)."""


def level_shift(level: int) -> int:
    """Number of address bits below those that ``level`` (-1 to 3) translates: 12 at level 3, 21 at 2, 30 at 1."""
    return PAGE_SHIFT + 9 * (LAST_LEVEL - level)


def level_size(level: int) -> int:
    """Bytes that one entry at ``level`` covers."""
    return 1 << level_shift(level)


def level_index(address: int, level: int) -> int:
    """Index (0 to 511) of ``address`` in a table of ``level``."""
    return address >> level_shift(level) & (ENTRIES_PER_TABLE - 1)


def is_table(descriptor: int, level: int) -> bool:
    """True for a valid entry that points to a table of the next level."""
    return level < LAST_LEVEL and descriptor & DESC_TYPE_MASK == DESC_TABLE


def is_leaf(descriptor: int, level: int) -> bool:
    """True for a valid block or page entry; level 3 takes only the page form."""
    return descriptor & DESC_TYPE_MASK == (DESC_PAGE if level == LAST_LEVEL else DESC_BLOCK)


class AccessPermission(IntEnum):
    """AP[2:1] where EL0 counts (EL1, and EL2 under E2H)."""

    RW_EL1 = 0
    RW_ALL = 1
    RO_EL1 = 2
    RO_ALL = 3


class S2Access(IntEnum):
    """S2AP."""

    NONE = 0
    RO = 1
    WO = 2
    RW = 3


class MemAttr(IntEnum):
    """MEMATTR of stage-2 without FWB."""

    DEVICE = 0x1
    NORMAL_NC = 0x5
    NORMAL = 0xF


class MemAttrFwb(IntEnum):
    """MEMATTR of stage-2 with FWB (HCR_EL2.FWB set)."""

    DEVICE = 0x1
    NORMAL_NC = 0x5
    NORMAL = 0x6


class Descriptor(Register):
    """What all descriptors share."""

    sw = Field(58, 55)
    valid = Field(0)

    ADDRESS_MASK: ClassVar[int] = ADDR_MASK_48

    @property
    def address(self) -> int:
        """Output address, bits 47:12 (a block's low bits are zero or the nT/OA bits of its level)."""
        return int(self) & self.ADDRESS_MASK

    @property
    def attributes(self) -> int:
        """Everything but the output address."""
        return int(self) & ~self.ADDRESS_MASK

    def describe(self) -> str:
        """The fields by name, then the output address; a zero software field is left out."""
        fields = [f for f in self.FIELDS.values() if f.name != "sw" or self.sw]
        return " ".join(f.text((int(self) >> f.lsb) & f.mask) for f in fields) + f" OA={self.address:#x}"


class TableDescriptor(Descriptor):
    """A stage-1 entry that points to a next-level table, with its hierarchical restrictions."""

    nstable = Field(63, label="NSTable")
    aptable = Field(62, 61, label="APTable")
    uxntable = Field(60, label="UXNTable")
    pxntable = Field(59, label="PXNTable")
    table = Field(1)


class S2Table(Descriptor):
    """A stage-2 entry that points to a next-level table."""

    table = Field(1)


class S1Leaf(Descriptor):
    """Stage-1 block or page of EL1&0."""

    uxn = Field(54)
    pxn = Field(53)
    cont = Field(52)
    dbm = Field(51)
    gp = Field(50)
    ng = Field(11, label="nG")
    af = Field(10)
    sh = Field(9, 8, Shareability)
    ap = Field(7, 6, AccessPermission)
    ns = Field(5)
    attridx = Field(4, 2, label="AttrIdx")
    page = Field(1)

    @property
    def writable(self) -> bool:
        """At the higher privilege level."""
        return not int(self) >> 7 & 1

    @property
    def executable(self) -> bool:
        """At the higher privilege level, SCTLR_ELx.WXN aside."""
        return not self.pxn


class S1LeafEl2(Descriptor):
    """Stage-1 block or page of EL2 without E2H: one privilege level, XN at bit 54, AP[1] is RES1."""

    xn = Field(54)
    cont = Field(52)
    dbm = Field(51)
    gp = Field(50)
    af = Field(10)
    sh = Field(9, 8, Shareability)
    ro = Field(7)
    res1 = Field(6, label="AP1")
    ns = Field(5)
    attridx = Field(4, 2, label="AttrIdx")
    page = Field(1)

    @property
    def writable(self) -> bool:
        """AP[2] is clear."""
        return not self.ro

    @property
    def executable(self) -> bool:
        """XN is clear (SCTLR_EL2.WXN aside)."""
        return not self.xn


class S1LeafE2h(S1Leaf):
    """Stage-1 block or page of EL2 under E2H: the EL1 layout (UXN, PXN, AP[1] = accessible at EL0)."""


class S2Leaf(Descriptor):
    """Stage-2 block or page."""

    xn = Field(54, 53)
    cont = Field(52)
    dbm = Field(51)
    af = Field(10)
    sh = Field(9, 8, Shareability)
    s2ap = Field(7, 6, S2Access)
    memattr = Field(5, 2, MemAttr)
    page = Field(1)

    @property
    def readable(self) -> bool:
        """S2AP[0]."""
        return bool(int(self) >> 6 & 1)

    @property
    def writable(self) -> bool:
        """S2AP[1]."""
        return bool(int(self) >> 7 & 1)

    @property
    def executable(self) -> bool:
        """XN[1] (bit 54) is clear; bit 53 separates EL1 from EL0 on cores with FEAT_XNX."""
        return not int(self) >> 54 & 1


def with_lpa2_address(descriptor: int, address: int) -> int:
    """``descriptor`` with a 52-bit output address in the LPA2 form: bits 51:50 of it at 9:8 (where SH was).

    Args:
        descriptor: the entry; its address and its bits 9:8 are replaced.
        address: page-aligned physical address below 1 << 52.
    """
    cleared = descriptor & ~(0x0003_FFFF_FFFF_F000 | 0x300)
    return cleared | address & 0x0003_FFFF_FFFF_F000 | (address >> 50 & 3) << 8


def lpa2_address(descriptor: int) -> int:
    """The 52-bit output address of an LPA2 entry."""
    return descriptor & 0x0003_FFFF_FFFF_F000 | (descriptor >> 8 & 3) << 50
