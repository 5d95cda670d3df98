"""The few A64 instructions that the emulator writes, patches or inspects.

Encoders take register numbers (31 is xzr) and absolute addresses; all return the 32-bit word. Text is the
disassembler's job; here are only questions with a number for an answer.

Source: Arm ARM (DDI 0487), chapter C6.
"""

from __future__ import annotations

from enum import IntEnum

from pkvm_emu.arch.sysreg import SysReg, by_encoding

NOP = 0xD503201F
YIELD = 0xD503203F
WFE = 0xD503205F
WFI = 0xD503207F
SEV = 0xD503209F
SEVL = 0xD50320BF
PACIASP = 0xD503233F
AUTIASP = 0xD50323BF
BTI = 0xD503241F
BTI_C = 0xD503245F
BTI_J = 0xD503249F
BTI_JC = 0xD50324DF
RET = 0xD65F03C0
ERET = 0xD69F03E0
ISB = 0xD5033FDF
DSB_SY = 0xD5033F9F

KERNEL_BUG_IMM = 0x800
"""Immediate of the BRK behind BUG and WARN."""
KCFI_BRK_BASE = 0x8000
"""BRK immediates 0x8000 to 0x83ff: kCFI mismatch; bits 9:5 the register of the type, 4:0 of the target."""

_MASK64 = (1 << 64) - 1


class Cond(IntEnum):
    """Condition codes of B.cond."""

    EQ = 0
    NE = 1
    CS = 2
    CC = 3
    MI = 4
    PL = 5
    VS = 6
    VC = 7
    HI = 8
    LS = 9
    GE = 10
    LT = 11
    GT = 12
    LE = 13
    AL = 14
    NV = 15


class BranchRangeError(ValueError):
    """A PC-relative target does not fit the instruction."""


def _exception(opc: int, low: int, imm16: int) -> int:
    if not 0 <= imm16 <= 0xFFFF:
        raise ValueError(f"a 16-bit immediate, not {imm16:#x}")
    return 0xD4000000 | opc << 21 | imm16 << 5 | low


def svc(imm16: int = 0) -> int:
    """``svc #imm16``."""
    return _exception(0, 1, imm16)


def hvc(imm16: int = 0) -> int:
    """``hvc #imm16``."""
    return _exception(0, 2, imm16)


def smc(imm16: int = 0) -> int:
    """``smc #imm16``."""
    return _exception(0, 3, imm16)


def brk(imm16: int = 0) -> int:
    """``brk #imm16``."""
    return _exception(1, 0, imm16)


def _imm16(word: int, pattern: int) -> int | None:
    return word >> 5 & 0xFFFF if word & 0xFFE0001F == pattern else None


def is_svc(word: int) -> int | None:
    """Immediate of an SVC, None for any other word."""
    return _imm16(word, 0xD4000001)


def is_hvc(word: int) -> int | None:
    """Immediate of an HVC, None for any other word."""
    return _imm16(word, 0xD4000002)


def is_smc(word: int) -> int | None:
    """Immediate of an SMC, None for any other word."""
    return _imm16(word, 0xD4000003)


def is_brk(word: int) -> int | None:
    """Immediate of a BRK, None for any other word."""
    return _imm16(word, 0xD4200000)


def kcfi_brk_registers(imm16: int) -> tuple[int, int] | None:
    """``(type register, target register)`` numbers of a kCFI BRK immediate; None for other immediates.

    >>> kcfi_brk_registers(0x8228)
    (17, 8)
    """
    if imm16 & ~0x3FF != KCFI_BRK_BASE:
        return None
    return imm16 >> 5 & 31, imm16 & 31


# --- branches -------------------------------------------------------------------------------------------------------
# (mask, match, offset width in words, lowest bit of the offset field)
_BRANCH_FORMS = (
    (0x7C000000, 0x14000000, 26, 0),  # b, bl
    (0xFF000000, 0x54000000, 19, 5),  # b.cond, bc.cond
    (0x7E000000, 0x34000000, 19, 5),  # cbz, cbnz
    (0x7E000000, 0x36000000, 14, 5),  # tbz, tbnz
)


def _form(word: int) -> tuple[int, int] | None:
    for mask, match, width, lsb in _BRANCH_FORMS:
        if word & mask == match:
            return width, lsb
    return None


def _with_offset(word: int, pc: int, target: int, width: int, lsb: int) -> int:
    # Kernel addresses are near 1 << 64: the distance is that of 64-bit arithmetic.
    distance = (target - pc + (1 << 63)) % (1 << 64) - (1 << 63)
    if distance & 3 or not -(1 << width + 1) <= distance < 1 << width + 1:
        raise BranchRangeError(
            f"branch at {pc:#x} cannot reach {target:#x}: {distance:+#x} bytes, +-{1 << width + 1:#x} possible"
        )
    mask = (1 << width) - 1
    return word & ~(mask << lsb) & 0xFFFFFFFF | (distance >> 2 & mask) << lsb


def b(pc: int, target: int) -> int:
    """``b target``, placed at ``pc``; like all branch encoders raises BranchRangeError out of range."""
    return _with_offset(0x14000000, pc, target, 26, 0)


def bl(pc: int, target: int) -> int:
    """``bl target``, placed at ``pc``."""
    return _with_offset(0x94000000, pc, target, 26, 0)


def b_cond(cond: Cond, pc: int, target: int) -> int:
    """``b.<cond> target``."""
    return _with_offset(0x54000000 | cond, pc, target, 19, 5)


def cbz(rt: int, pc: int, target: int, *, wide: bool = True) -> int:
    """``cbz x<rt>, target`` (``w<rt>`` with ``wide=False``)."""
    return _with_offset((0xB4000000 if wide else 0x34000000) | rt, pc, target, 19, 5)


def cbnz(rt: int, pc: int, target: int, *, wide: bool = True) -> int:
    """``cbnz x<rt>, target`` (``w<rt>`` with ``wide=False``)."""
    return _with_offset((0xB5000000 if wide else 0x35000000) | rt, pc, target, 19, 5)


def tbz(rt: int, bit: int, pc: int, target: int) -> int:
    """``tbz x<rt>, #bit, target``."""
    return _with_offset(0x36000000 | (bit >> 5) << 31 | (bit & 31) << 19 | rt, pc, target, 14, 5)


def tbnz(rt: int, bit: int, pc: int, target: int) -> int:
    """``tbnz x<rt>, #bit, target``."""
    return _with_offset(0x37000000 | (bit >> 5) << 31 | (bit & 31) << 19 | rt, pc, target, 14, 5)


def branch_target(word: int, pc: int) -> int | None:
    """Absolute target of a direct branch (b, bl, b.cond, cbz, cbnz, tbz, tbnz) at ``pc``; None for other words."""
    form = _form(word)
    if form is None:
        return None
    width, lsb = form
    offset = word >> lsb & (1 << width) - 1
    if offset >> width - 1:
        offset -= 1 << width
    return pc + 4 * offset & _MASK64


def retarget(word: int, old_pc: int, new_pc: int) -> int:
    """The word for ``new_pc`` that does what ``word`` does at ``old_pc``: branches and ADR/ADRP keep their target.

    Other words come back unchanged. This is what patching in an alternative sequence needs for branches that leave it.

    Raises:
        BranchRangeError: the target is out of reach from ``new_pc``.
    """
    target = branch_target(word, old_pc)
    form = _form(word)
    if target is not None and form is not None:
        return _with_offset(word, new_pc, target, *form)
    page = adr_target(word, old_pc)
    if page is not None:
        return (adrp if word >> 31 else adr)(word & 31, new_pc, page)
    return word


def is_bl(word: int) -> bool:
    """True for ``bl``."""
    return word & 0xFC000000 == 0x94000000


def is_b(word: int) -> bool:
    """True for an unconditional ``b``."""
    return word & 0xFC000000 == 0x14000000


def br(rn: int) -> int:
    """``br x<rn>``."""
    return 0xD61F0000 | rn << 5


def blr(rn: int) -> int:
    """``blr x<rn>``."""
    return 0xD63F0000 | rn << 5


def is_blr(word: int) -> int | None:
    """Register number of a BLR, None for any other word."""
    return word >> 5 & 31 if word & 0xFFFFFC1F == 0xD63F0000 else None


def is_br(word: int) -> int | None:
    """Register number of a BR, None for any other word."""
    return word >> 5 & 31 if word & 0xFFFFFC1F == 0xD61F0000 else None


def ret(rn: int = 30) -> int:
    """``ret x<rn>``."""
    return 0xD65F0000 | rn << 5


def is_ret(word: int) -> int | None:
    """Register number of a RET (30 as a rule), None for any other word; RETAA and RETAB count, with 30."""
    if word & 0xFFFFFC1F == 0xD65F0000:
        return word >> 5 & 31
    return 30 if word in (0xD65F0BFF, 0xD65F0FFF) else None


# --- moves and addresses --------------------------------------------------------------------------------------------
def _wide_move(base: int, rd: int, imm16: int, shift: int) -> int:
    if not 0 <= imm16 <= 0xFFFF or shift not in (0, 16, 32, 48):
        raise ValueError(f"no wide move of {imm16:#x} with shift {shift}")
    return base | shift // 16 << 21 | imm16 << 5 | rd


def movz(rd: int, imm16: int, shift: int = 0) -> int:
    """``movz x<rd>, #imm16, lsl #shift``."""
    return _wide_move(0xD2800000, rd, imm16, shift)


def movk(rd: int, imm16: int, shift: int = 0) -> int:
    """``movk x<rd>, #imm16, lsl #shift``."""
    return _wide_move(0xF2800000, rd, imm16, shift)


def mov_imm64(rd: int, value: int) -> list[int]:
    """One to four words that put any 64-bit ``value`` into ``x<rd>``."""
    parts = [(shift, value >> shift & 0xFFFF) for shift in (0, 16, 32, 48)]
    used = [part for part in parts if part[1]] or parts[:1]
    return [(movk if i else movz)(rd, imm, shift) for i, (shift, imm) in enumerate(used)]


def _pc_relative(base: int, rd: int, immediate: int) -> int:
    return base | (immediate & 3) << 29 | (immediate >> 2 & 0x7FFFF) << 5 | rd


def _signed_distance(pc: int, target: int, limit: int) -> int:
    distance = (target - pc + (1 << 63)) % (1 << 64) - (1 << 63)
    if not -limit <= distance < limit:
        raise BranchRangeError(f"address at {pc:#x} cannot reach {target:#x}: +-{limit:#x} possible")
    return distance


def adr(rd: int, pc: int, target: int) -> int:
    """``adr x<rd>, target``, placed at ``pc``; +-1 MiB."""
    return _pc_relative(0x10000000, rd, _signed_distance(pc, target, 1 << 20) & 0x1FFFFF)


def adrp(rd: int, pc: int, target: int) -> int:
    """``adrp x<rd>, <page of target>``, placed at ``pc``; +-4 GiB."""
    distance = _signed_distance(pc & ~0xFFF, target & ~0xFFF, 1 << 32)
    return _pc_relative(0x90000000, rd, distance >> 12 & 0x1FFFFF)


def adr_target(word: int, pc: int) -> int | None:
    """What ADR or ADRP at ``pc`` leaves in its register; None for other words."""
    if word & 0x1F000000 != 0x10000000:
        return None
    offset = word >> 29 & 3 | (word >> 5 & 0x7FFFF) << 2
    if offset >> 20:
        offset -= 1 << 21
    return (pc & ~0xFFF) + (offset << 12) & _MASK64 if word >> 31 else pc + offset & _MASK64


# --- system registers -----------------------------------------------------------------------------------------------
def sysreg_access(word: int) -> tuple[bool, SysReg | tuple[int, int, int, int, int], int] | None:
    """Decode MRS or MSR (register).

    Returns:
        ``(is_read, register, rt)``; the register is its encoding ``(op0, op1, crn, crm, op2)`` where it has no entry
        in the table. None for other words (and for the immediate forms).
    """
    if word & 0xFFD00000 != 0xD5100000:
        return None
    encoding = (2 + (word >> 19 & 1), word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7)
    return bool(word >> 21 & 1), by_encoding(*encoding) or encoding, word & 31


def is_hint(word: int) -> bool:
    """True for the whole hint space: NOP, WFI, BTI, PACIASP and everything that old cores run as NOP."""
    return word & 0xFFFFF01F == 0xD503201F
