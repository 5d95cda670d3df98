"""The few AArch64 instruction words that linking and patching read and write. Source: Arm ARM, C4.1 (encodings)."""

from __future__ import annotations

from typing import NamedTuple

NOP = 0xD503201F
_BR_X16 = 0xD61F0200
_BRANCH_RANGE = 1 << 27


class ImmediateField(NamedTuple):
    """Where an instruction keeps an immediate: ``width`` bits at bit ``shift``."""

    shift: int
    width: int

    def encode(self, word: int, immediate: int) -> int:
        """Return ``word`` with the field replaced by the low bits of ``immediate``."""
        mask = (1 << self.width) - 1
        return (word & ~(mask << self.shift)) | ((immediate & mask) << self.shift)

    def decode(self, word: int) -> int:
        """Return the field of ``word`` as a signed number."""
        value = (word >> self.shift) & ((1 << self.width) - 1)
        return value - (1 << self.width) if value >> (self.width - 1) else value


IMM12 = ImmediateField(10, 12)
IMM14 = ImmediateField(5, 14)
IMM16 = ImmediateField(5, 16)
IMM19 = ImmediateField(5, 19)
IMM26 = ImmediateField(0, 26)


def encode_adr(word: int, immediate: int) -> int:
    """Return an ADR or ADRP with its split 21-bit immediate replaced."""
    return (word & 0x9F00001F) | ((immediate & 3) << 29) | (((immediate >> 2) & 0x7FFFF) << 5)


def decode_adr(word: int) -> int:
    """Return the signed 21-bit immediate of an ADR or ADRP."""
    value = ((word >> 5) & 0x7FFFF) << 2 | ((word >> 29) & 3)
    return value - (1 << 21) if value >> 20 else value


def is_adrp(word: int) -> bool:
    """True for ADRP."""
    return word & 0x9F000000 == 0x90000000


def is_adr(word: int) -> bool:
    """True for ADR."""
    return word & 0x9F000000 == 0x10000000


def is_literal_load(word: int) -> bool:
    """True for LDR, LDRSW and PRFM with a PC-relative literal."""
    return word & 0x3B000000 == 0x18000000


def branch_field(word: int) -> ImmediateField | None:
    """Return where a direct branch keeps its word offset, or None when ``word`` is no direct branch."""
    if word & 0x7C000000 == 0x14000000:  # B, BL
        return IMM26
    if word & 0x7E000000 == 0x34000000 or word & 0xFF000000 == 0x54000000:  # CBZ, CBNZ, B.cond, BC.cond
        return IMM19
    if word & 0x7E000000 == 0x36000000:  # TBZ, TBNZ
        return IMM14
    return None


def branch(place: int, target: int) -> int | None:
    """Return a ``b`` at VA ``place`` to VA ``target``, or None when it is beyond ±128 MiB."""
    distance = target - place
    if distance & 3 or not -_BRANCH_RANGE <= distance < _BRANCH_RANGE:
        return None
    return IMM26.encode(0x14000000, distance >> 2)


def veneer(place: int, target: int) -> list[int]:
    """Return the words of a branch island at VA ``place`` that jumps to any VA ``target`` through x16.

    Within ±4 GiB this is adrp/add/br, as the module loader's PLT entries; beyond, movz and three movk.
    """
    pages = (target >> 12) - (place >> 12)
    if -(1 << 20) <= pages < 1 << 20:
        return [encode_adr(0x90000010, pages), IMM12.encode(0x91000210, target & 0xFFF), _BR_X16]
    words = [IMM16.encode(0xD2800010, target)]
    words += [IMM16.encode(0xF2800010 | half << 21, target >> 16 * half) for half in (1, 2, 3)]
    return [*words, _BR_X16]


#: Bytes to reserve for the longest form of ``veneer``.
VENEER_SIZE = 20
