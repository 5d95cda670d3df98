"""Every AArch64 relocation that the kernel's module loader accepts, one row each.

Formulas are those of the AArch64 ELF psABI; which overflows are errors follows the loader (arch/arm64/kernel/module.c),
which differs from the psABI in two places: ABS16 and ABS32 take no negative values, PREL16 and PREL32 are signed.
R_AARCH64_PLT32, accepted by the hyp relocation generator, is not accepted by the loader and therefore has no row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pkvm_emu.elf.elements import MASK64
from pkvm_emu.elf.instruction import IMM12, IMM14, IMM16, IMM19, IMM26, ImmediateField, encode_adr
from pkvm_emu.errors import InputError


class RelocationError(InputError):
    """A relocation that cannot be applied: out of range, unknown, or outside of its section."""


class Expression(Enum):
    """What is computed from symbol value S, addend A and place P."""

    NONE = "nothing"
    ABS = "S + A"
    PREL = "S + A - P"
    PAGE = "Page(S + A) - Page(P)"


class Check(Enum):
    """When a value counts as overflow."""

    NONE = "never"
    SIGNED = "outside of the signed range of the field"
    UNSIGNED = "negative or wider than the field"
    MOVW = "more than 16 bits left after the shift"


class Field(Enum):
    """What the value is written into."""

    NOTHING = "nothing"
    DATA = "a little-endian number"
    ADR = "the split immediate of ADR and ADRP"
    IMM12 = "the immediate of ADD, LDR and STR"
    IMM14 = "the offset of TBZ and TBNZ"
    IMM19 = "the offset of B.cond, CBZ and LDR (literal)"
    IMM26 = "the offset of B and BL"
    MOVKZ = "the immediate of MOVZ and MOVK"
    MOVNZ = "the immediate of MOVZ or MOVN, whichever the sign asks for"


@dataclass(frozen=True, slots=True)
class RelocationType:
    """One row: the value is shifted right by ``shift`` and ``bits`` bits of it are written to ``field``.

    ``size`` is the number of bytes patched; ``check`` NONE is what the ``_NC`` types ask for.
    """

    number: int
    name: str
    expression: Expression
    field: Field
    shift: int
    bits: int
    check: Check
    size: int = 4

    @property
    def is_branch(self) -> bool:
        """True for the two types that may go through a veneer."""
        return self.field is Field.IMM26

    @property
    def reach(self) -> str:
        """The range of the field for people."""
        if self.check is Check.UNSIGNED:
            return f"0..{(1 << self.bits) - 1:#x}"
        if self.check is Check.MOVW:
            return f"{self.shift + 16} bits"
        span = 1 << (self.bits + self.shift - 1)
        for unit, amount in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if span >= amount:
                return f"±{span // amount} {unit}"
        return f"±{span} bytes"


#: Writes one relocation: (memory, byte position, place VA, value S + A) -> False when the value overflows.
Applier = Callable[[bytearray, int, int, int], bool]


def _data(number: int, name: str, expression: Expression, bits: int) -> RelocationType:
    checks = {Expression.ABS: Check.UNSIGNED, Expression.PREL: Check.SIGNED}
    check = Check.NONE if bits == 64 else checks[expression]
    return RelocationType(number, f"R_AARCH64_{name}", expression, Field.DATA, 0, bits, check, bits // 8)


def _movw(number: int, name: str, field: Field, *, unchecked: bool = False) -> RelocationType:
    expression = Expression.PREL if "PREL" in name else Expression.ABS
    shift = 16 * int(name.removesuffix("_NC")[-1])
    check = Check.NONE if unchecked else Check.MOVW
    return RelocationType(number, f"R_AARCH64_{name}", expression, field, shift, 16, check)


def _immediate(number: int, name: str, expression: Expression, field: Field, shift: int, bits: int) -> RelocationType:
    check = Check.NONE if name.endswith("_NC") else Check.SIGNED
    return RelocationType(number, f"R_AARCH64_{name}", expression, field, shift, bits, check)


_ROWS = (
    RelocationType(0, "R_ARM_NONE", Expression.NONE, Field.NOTHING, 0, 0, Check.NONE, 0),
    RelocationType(256, "R_AARCH64_NONE", Expression.NONE, Field.NOTHING, 0, 0, Check.NONE, 0),
    _data(257, "ABS64", Expression.ABS, 64),
    _data(258, "ABS32", Expression.ABS, 32),
    _data(259, "ABS16", Expression.ABS, 16),
    _data(260, "PREL64", Expression.PREL, 64),
    _data(261, "PREL32", Expression.PREL, 32),
    _data(262, "PREL16", Expression.PREL, 16),
    _movw(263, "MOVW_UABS_G0", Field.MOVKZ),
    _movw(264, "MOVW_UABS_G0_NC", Field.MOVKZ, unchecked=True),
    _movw(265, "MOVW_UABS_G1", Field.MOVKZ),
    _movw(266, "MOVW_UABS_G1_NC", Field.MOVKZ, unchecked=True),
    _movw(267, "MOVW_UABS_G2", Field.MOVKZ),
    _movw(268, "MOVW_UABS_G2_NC", Field.MOVKZ, unchecked=True),
    _movw(269, "MOVW_UABS_G3", Field.MOVKZ, unchecked=True),
    _movw(270, "MOVW_SABS_G0", Field.MOVNZ),
    _movw(271, "MOVW_SABS_G1", Field.MOVNZ),
    _movw(272, "MOVW_SABS_G2", Field.MOVNZ),
    _immediate(273, "LD_PREL_LO19", Expression.PREL, Field.IMM19, 2, 19),
    _immediate(274, "ADR_PREL_LO21", Expression.PREL, Field.ADR, 0, 21),
    _immediate(275, "ADR_PREL_PG_HI21", Expression.PAGE, Field.ADR, 12, 21),
    _immediate(276, "ADR_PREL_PG_HI21_NC", Expression.PAGE, Field.ADR, 12, 21),
    _immediate(277, "ADD_ABS_LO12_NC", Expression.ABS, Field.IMM12, 0, 12),
    _immediate(278, "LDST8_ABS_LO12_NC", Expression.ABS, Field.IMM12, 0, 12),
    _immediate(279, "TSTBR14", Expression.PREL, Field.IMM14, 2, 14),
    _immediate(280, "CONDBR19", Expression.PREL, Field.IMM19, 2, 19),
    _immediate(282, "JUMP26", Expression.PREL, Field.IMM26, 2, 26),
    _immediate(283, "CALL26", Expression.PREL, Field.IMM26, 2, 26),
    _immediate(284, "LDST16_ABS_LO12_NC", Expression.ABS, Field.IMM12, 1, 11),
    _immediate(285, "LDST32_ABS_LO12_NC", Expression.ABS, Field.IMM12, 2, 10),
    _immediate(286, "LDST64_ABS_LO12_NC", Expression.ABS, Field.IMM12, 3, 9),
    _movw(287, "MOVW_PREL_G0", Field.MOVNZ),
    _movw(288, "MOVW_PREL_G0_NC", Field.MOVKZ, unchecked=True),
    _movw(289, "MOVW_PREL_G1", Field.MOVNZ),
    _movw(290, "MOVW_PREL_G1_NC", Field.MOVKZ, unchecked=True),
    _movw(291, "MOVW_PREL_G2", Field.MOVNZ),
    _movw(292, "MOVW_PREL_G2_NC", Field.MOVKZ, unchecked=True),
    _movw(293, "MOVW_PREL_G3", Field.MOVNZ, unchecked=True),
    _immediate(299, "LDST128_ABS_LO12_NC", Expression.ABS, Field.IMM12, 4, 8),
)

#: Every accepted relocation by number.
RELOCATION_TYPES: dict[int, RelocationType] = {row.number: row for row in _ROWS}

R_AARCH64_ABS64 = 257
R_AARCH64_PREL32 = 261
R_AARCH64_ADR_PREL_PG_HI21 = 275
R_AARCH64_ADD_ABS_LO12_NC = 277
R_AARCH64_JUMP26 = 282
R_AARCH64_CALL26 = 283
BRANCH_TYPES = (R_AARCH64_JUMP26, R_AARCH64_CALL26)

_REFUSED_NAMES = {
    300: "MOVW_GOTOFF_G0", 307: "GOTREL64", 308: "GOTREL32", 309: "GOT_LD_PREL19", 310: "LD64_GOTOFF_LO15",
    311: "ADR_GOT_PAGE", 312: "LD64_GOT_LO12_NC", 313: "LD64_GOTPAGE_LO15", 314: "PLT32", 315: "GOTPCREL32",
    513: "TLSGD_ADR_PAGE21", 541: "TLSIE_ADR_GOTTPREL_PAGE21", 542: "TLSIE_LD64_GOTTPREL_LO12_NC",
    549: "TLSLE_ADD_TPREL_HI12", 551: "TLSLE_ADD_TPREL_LO12_NC", 562: "TLSDESC_ADR_PAGE21",
    1024: "COPY", 1025: "GLOB_DAT", 1026: "JUMP_SLOT", 1027: "RELATIVE",
}  # fmt: skip


def relocation_name(number: int) -> str:
    """Return the name of any relocation type that a compiler may emit, or ``unknown``."""
    row = RELOCATION_TYPES.get(number)
    if row is not None:
        return row.name
    name = _REFUSED_NAMES.get(number)
    return f"R_AARCH64_{name}" if name else "unknown"


def _signed(value: int) -> int:
    value &= MASK64
    return value - (1 << 64) if value >> 63 else value


def relocation_value(row: RelocationType, place: int, value: int) -> int:
    """Return the signed 64-bit result X of the row's expression for S + A = ``value`` at P = ``place``."""
    if row.expression is Expression.PREL:
        return _signed(value - place)
    if row.expression is Expression.PAGE:
        return _signed((value & ~0xFFF) - (place & ~0xFFF))
    return _signed(value) if row.expression is Expression.ABS else 0


def _data_applier(row: RelocationType) -> Applier:
    packer = struct.Struct({8: "<Q", 4: "<I", 2: "<H"}[row.size])
    mask = (1 << row.bits) - 1
    low, high = -(1 << (row.bits - 1)), 1 << (row.bits - 1)
    if row.check is Check.UNSIGNED:
        low, high = 0, 1 << row.bits
    is_checked = row.check is not Check.NONE

    def apply(memory: bytearray, position: int, place: int, value: int) -> bool:
        result = relocation_value(row, place, value)
        packer.pack_into(memory, position, result & mask)
        return not is_checked or low <= result < high

    return apply


def _movw_applier(row: RelocationType) -> Applier:
    follows_sign = row.field is Field.MOVNZ
    is_checked = row.check is not Check.NONE

    def apply(memory: bytearray, position: int, place: int, value: int) -> bool:
        result = relocation_value(row, place, value)
        word = int.from_bytes(memory[position : position + 4], "little")
        immediate = result >> row.shift
        if follows_sign:
            word &= ~(3 << 29)
            if result >= 0:
                word |= 2 << 29  # MOVZ; opcode 0, left by the mask, is MOVN
            else:
                immediate = ~immediate
        memory[position : position + 4] = IMM16.encode(word, immediate).to_bytes(4, "little")
        return not is_checked or 0 <= immediate <= 0xFFFF

    return apply


def _immediate_applier(row: RelocationType) -> Applier:
    shift, mask = row.shift, (1 << row.bits) - 1
    low, high = -(1 << (row.bits - 1)), 1 << (row.bits - 1)
    is_checked = row.check is not Check.NONE
    encode = _ENCODERS[row.field]

    def apply(memory: bytearray, position: int, place: int, value: int) -> bool:
        result = relocation_value(row, place, value) >> shift
        word = int.from_bytes(memory[position : position + 4], "little")
        memory[position : position + 4] = encode(word, result & mask).to_bytes(4, "little")
        return not is_checked or low <= result < high

    return apply


def _nothing(memory: bytearray, position: int, place: int, value: int) -> bool:
    return True


_FIELDS: dict[Field, ImmediateField] = {
    Field.IMM12: IMM12,
    Field.IMM14: IMM14,
    Field.IMM19: IMM19,
    Field.IMM26: IMM26,
}
_ENCODERS: dict[Field, Callable[[int, int], int]] = {
    Field.ADR: encode_adr,
    **{field: place.encode for field, place in _FIELDS.items()},
}


def _applier(row: RelocationType) -> Applier:
    if row.field is Field.NOTHING:
        return _nothing
    if row.field is Field.DATA:
        return _data_applier(row)
    if row.field in (Field.MOVKZ, Field.MOVNZ):
        return _movw_applier(row)
    return _immediate_applier(row)


#: How to apply each accepted relocation, by number.
APPLIERS: dict[int, Applier] = {row.number: _applier(row) for row in _ROWS}
