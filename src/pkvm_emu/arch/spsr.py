"""PSTATE and SPSR_ELx of AArch64 state.

Source: Arm ARM (DDI 0487), "SPSR_EL2, Saved Program Status Register (EL2)".
"""

from __future__ import annotations

from enum import IntEnum

from pkvm_emu.arch.bitfield import Field, Register


class Mode(IntEnum):
    """M[4:0]: exception level and stack pointer; bit 4 clear is AArch64."""

    EL0t = 0x0
    EL1t = 0x4
    EL1h = 0x5
    EL2t = 0x8
    EL2h = 0x9
    EL3t = 0xC
    EL3h = 0xD

    @property
    def el(self) -> int:
        """Exception level, 0 to 3."""
        return int(self) >> 2

    @property
    def uses_sp_elx(self) -> bool:
        """True where SP is SP_ELx (the ``h`` modes), False where it is SP_EL0."""
        return bool(int(self) & 1)


EL0t, EL1t, EL1h, EL2t, EL2h, EL3t, EL3h = Mode
DAIF_ALL = 0x3C0
"""Debug, SError, IRQ and FIQ masked."""


class Spsr(Register):
    """SPSR_ELx, and PSTATE in the same layout."""

    n = Field(31)
    z = Field(30)
    c = Field(29)
    v = Field(28)
    tco = Field(25)
    dit = Field(24)
    uao = Field(23)
    pan = Field(22)
    ss = Field(21)
    il = Field(20)
    allint = Field(13)
    ssbs = Field(12)
    btype = Field(11, 10)
    d = Field(9)
    a = Field(8)
    i = Field(7)
    f = Field(6)
    m = Field(4, 0, Mode)

    @property
    def el(self) -> int:
        """Exception level, 0 to 3; 0 for AArch32 user mode and 1 for its other modes."""
        mode = int(self) & 0x1F
        if mode & 0x10:
            return 0 if mode == 0x10 else 1
        return mode >> 2

    @property
    def aarch32(self) -> bool:
        """M[4] is set."""
        return bool(int(self) & 0x10)

    @property
    def daif(self) -> int:
        """The four mask bits as MRS DAIF shows them (bits 9:6 in place)."""
        return int(self) & DAIF_ALL

    @property
    def nzcv(self) -> int:
        """The condition flags as MRS NZCV shows them (bits 31:28 in place)."""
        return int(self) & 0xF0000000

    def describe(self) -> str:
        """``EL1h NzCv DaIF PAN``: mode, flags (capital = set), then what else is set."""
        value = int(self)
        flags = "".join(c if value >> bit & 1 else c.lower() for c, bit in zip("NZCV", (31, 30, 29, 28), strict=True))
        masks = "".join(c if value >> bit & 1 else c.lower() for c, bit in zip("DAIF", (9, 8, 7, 6), strict=True))
        mode = Spsr.m.__get__(self)
        name = mode.name if isinstance(mode, Mode) else f"M={mode:#x}"
        extra = [f.label for f in self.FIELDS.values() if f.width == 1 and 10 < f.lsb < 28 and value >> f.lsb & 1]
        if self.btype:
            extra.append(f"BTYPE={self.btype}")
        return " ".join([name, flags, masks, *extra])


def exception_pstate(target_el: int, *, pan: bool = False) -> Spsr:
    """PSTATE on AArch64 exception entry at ``target_el``: handler mode, DAIF masked, other bits clear.

    Args:
        target_el: 1, 2 or 3.
        pan: SCTLR_ELx.SPAN is 0, so that entry sets PSTATE.PAN.
    """
    return Spsr(DAIF_ALL | target_el << 2 | 1 | (1 << 22 if pan else 0))
