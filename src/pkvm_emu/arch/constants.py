"""Constants that code makes in registers: wide moves, their combinations, and the immediates of logical instructions.

Source: Arm ARM, C4.1.92 (data processing, immediate), DecodeBitMasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_MASK64 = (1 << 64) - 1
_MOVZ, _MOVN, _MOVK, _WIDE_FORM = 0xD280_0000, 0x9280_0000, 0xF280_0000, 0xFF80_0000
_ORR, _AND_FORM = 0xB200_0000, 0xFF80_0000
_ZERO_REGISTER = 31
#: A scheduler may put so many instructions between the parts of one constant.
_APART = 4


class MadeConstant(NamedTuple):
    """A 64-bit constant.

    Attributes:
        position: number of its first instruction word.
        value: the constant.
        is_or: it is or-ed to a register; False: a register is set to it.
    """

    position: int
    value: int
    is_or: bool


def bitmask(word: int) -> int | None:
    """The immediate of a logical instruction, or None for a reserved encoding."""
    is64, high, rotate, ones = word >> 31, word >> 22 & 1, word >> 16 & 63, word >> 10 & 63
    if high and not is64:
        return None
    length = (high << 6 | ~ones & 0x3F).bit_length() - 1
    if length < 1:
        return None
    size = 1 << length
    count, turn = ones & size - 1, rotate & size - 1
    if count == size - 1:
        return None
    element = (1 << (count + 1)) - 1
    element = (element >> turn | element << (size - turn)) & (1 << size) - 1
    value = 0
    for at in range(0, 64 if is64 else 32, size):
        value |= element << at
    return value


def lsr_immediate(word: int) -> int | None:
    """How far ``LSR Xd, Xn, #shift`` shifts; None for another instruction."""
    return word >> 16 & 63 if word & 0xFFC0_FC00 == 0xD340_FC00 else None


def made_constants(words: Sequence[int]) -> list[MadeConstant]:
    """The 64-bit constants that instruction words make, in order; a constant of several instructions counts once."""
    found = []
    for index, word in enumerate(words):
        form = word & _WIDE_FORM
        if form in (_MOVZ, _MOVN):
            value = (word >> 5 & 0xFFFF) << (word >> 17 & 0x30)
            found.append(
                MadeConstant(index, _with_parts(words, index, value ^ _MASK64 if form == _MOVN else value), False)
            )
        elif word & _AND_FORM == _ORR and (mask := bitmask(word)) is not None:
            is_or = word >> 5 & 31 != _ZERO_REGISTER
            found.append(MadeConstant(index, mask if is_or else _with_parts(words, index, mask), is_or))
    return found


def _with_parts(words: Sequence[int], index: int, value: int) -> int:
    """``value`` with the 16-bit parts that MOVKs to the same register put in soon after."""
    register, apart, at = words[index] & 31, 0, index + 1
    while at < len(words) and apart < _APART:
        word = words[at]
        if word & _WIDE_FORM == _MOVK and word & 31 == register:
            shift = word >> 17 & 0x30
            value = value & ~(0xFFFF << shift) | (word >> 5 & 0xFFFF) << shift
            apart = 0
        else:
            apart += 1
        at += 1
    return value
