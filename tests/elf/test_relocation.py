"""Each relocation that the module loader accepts: what it writes, and where it overflows."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.relocation import APPLIERS, RELOCATION_TYPES, RelocationError, relocation_name

from .elf_builder import ABS, NOP, ElfBuilder, words

PLACE = 0xFFFF_FFC0_0000_1234
MASK = (1 << 64) - 1

ADR, ADRP, ADD, LDR_LITERAL = 0x10000000, 0x90000000, 0x91000000, 0x58000000
MOVZ, MOVN, MOVK, B, BL, TBZ, CBZ = 0xD2800000, 0x92800000, 0xF2800000, 0x14000000, 0x94000000, 0x36000000, 0xB4000000
LDRB, LDRH, LDRW, LDRX, LDRQ = 0x39400000, 0x79400000, 0xB9400000, 0xF9400000, 0x3DC00000
PAGE = PLACE & ~0xFFF

#: number, word before, S + A, word after
VALUES = [
    (263, MOVZ, 0xFFFF, MOVZ | 0xFFFF << 5),
    (264, MOVK, 0x12345678, MOVK | 0x5678 << 5),
    (265, MOVZ, 0x1234_5678, MOVZ | 0x1234 << 5),
    (266, MOVK, 0xABCD_1234_5678, MOVK | 0x1234 << 5),
    (267, MOVZ, 0xABCD_1234_5678, MOVZ | 0xABCD << 5),
    (268, MOVK, 0xFFFF_ABCD_1234_5678, MOVK | 0xABCD << 5),
    (269, MOVK, 0xFEDC_ABCD_1234_5678, MOVK | 0xFEDC << 5),
    (270, MOVN, 0x7FFF, MOVZ | 0x7FFF << 5),
    (270, MOVZ, -2 & MASK, MOVN | 1 << 5),
    (271, MOVZ, 0x1234_5678, MOVZ | 0x1234 << 5),
    (271, MOVZ, -0x1234_5678 & MASK, MOVN | 0x1234 << 5),
    (272, MOVZ, 0x1234_0000_0001, MOVZ | 0x1234 << 5),
    (273, LDR_LITERAL, PLACE - 8, LDR_LITERAL | 0x7FFFE << 5),
    (274, ADR, PLACE + 0x1235, ADR | 1 << 29 | (0x1235 >> 2) << 5),
    (274, ADR, PLACE - 1, ADR | 3 << 29 | 0x7FFFF << 5),
    (275, ADRP, PAGE + 0x5FFF, ADRP | 1 << 29 | 1 << 5),
    (275, ADRP, PAGE - 0x1000, ADRP | 3 << 29 | 0x7FFFF << 5),
    (276, ADRP, PAGE + (5 << 40) + 0x2000, ADRP | 2 << 29),
    (277, ADD, 0x1FFF, ADD | 0xFFF << 10),
    (278, LDRB, 0x1ABC, LDRB | 0xABC << 10),
    (279, TBZ, PLACE + 0x7FFC, TBZ | 0x1FFF << 5),
    (280, CBZ, PLACE - 0x100000, CBZ | 0x40000 << 5),
    (282, B, PLACE + 0x7FFFFFC, B | 0x1FFFFFF),
    (283, BL, PLACE - 0x8000000, BL | 0x2000000),
    (284, LDRH, 0x1ABC, LDRH | (0xABC >> 1) << 10),
    (285, LDRW, 0x1ABC, LDRW | (0xABC >> 2) << 10),
    (286, LDRX, 0x1AB8, LDRX | (0xAB8 >> 3) << 10),
    (287, MOVZ, PLACE - 3, MOVN | 2 << 5),
    (288, MOVK, PLACE + 0x12345, MOVK | 0x2345 << 5),
    (289, MOVZ, PLACE + 0x12340000, MOVZ | 0x1234 << 5),
    (290, MOVK, PLACE + 0xABC12340000, MOVK | 0x1234 << 5),
    (291, MOVZ, PLACE - (0x1234 << 32), MOVN | 0x1233 << 5),
    (292, MOVK, PLACE + (0x71234 << 32), MOVK | 0x1234 << 5),
    (293, MOVZ, PLACE - (1 << 48), MOVN),
    (299, LDRQ, 0x1AB0, LDRQ | (0xAB0 >> 4) << 10),
]

#: number, a value that fits, the nearest one that does not
LIMITS = [
    (258, 0, -1),
    (258, 0xFFFF_FFFF, 0x1_0000_0000),
    (259, 0, -1),
    (259, 0xFFFF, 0x1_0000),
    (261, PLACE + 0x7FFF_FFFF, PLACE + 0x8000_0000),
    (261, PLACE - 0x8000_0000, PLACE - 0x8000_0001),
    (262, PLACE + 0x7FFF, PLACE + 0x8000),
    (262, PLACE - 0x8000, PLACE - 0x8001),
    (263, 0xFFFF, 0x10000),
    (263, 0, -1),
    (265, 0xFFFF_FFFF, 0x1_0000_0000),
    (267, 0xFFFF_FFFF_FFFF, 0x1_0000_0000_0000),
    (270, 0xFFFF, 0x10000),
    (270, -0x10000, -0x10001),
    (271, 0xFFFF_FFFF, 0x1_0000_0000),
    (272, -(1 << 48), -(1 << 48) - 1),
    (273, PLACE + 0xFFFFC, PLACE + 0x100000),
    (274, PLACE + 0xFFFFF, PLACE + 0x100000),
    (274, PLACE - 0x100000, PLACE - 0x100001),
    (275, PAGE + 0xFFFF_FFFF, PAGE + 0x1_0000_0000),
    (275, PAGE - 0x1_0000_0000, PAGE - 0x1_0000_0001),
    (279, PLACE + 0x7FFC, PLACE + 0x8000),
    (279, PLACE - 0x8000, PLACE - 0x8004),
    (280, PLACE + 0xFFFFC, PLACE + 0x100000),
    (282, PLACE + 0x7FFFFFC, PLACE + 0x8000000),
    (283, PLACE - 0x8000000, PLACE - 0x8000004),
    (287, PLACE + 0xFFFF, PLACE + 0x10000),
    (287, PLACE - 0x10000, PLACE - 0x10001),
    (289, PLACE + 0xFFFF_FFFF, PLACE + 0x1_0000_0000),
    (291, PLACE - (1 << 48), PLACE - (1 << 48) - 1),
]

NEVER_OVERFLOW = [0, 256, 257, 260, 264, 266, 268, 269, 276, 277, 278, 284, 285, 286, 288, 290, 292, 293, 299]


def apply(number: int, word: int, value: int) -> tuple[int, bool]:
    memory = bytearray(words(word, 0))
    fits = APPLIERS[number](memory, 0, PLACE, value & MASK)
    return struct.unpack_from("<I", memory)[0], fits


@pytest.mark.parametrize(("number", "before", "value", "after"), VALUES)
def test_instruction_relocation_writes_its_field_and_nothing_else(number, before, value, after):
    register = 0x11 if number not in (282, 283) else 0
    word, fits = apply(number, before | register, value)
    assert fits
    assert f"{word:#010x}" == f"{after | register:#010x}"


@pytest.mark.parametrize(("number", "inside", "outside"), LIMITS)
def test_overflow_starts_where_the_module_loader_says(number, inside, outside):
    assert apply(number, 0, inside)[1]
    assert not apply(number, 0, outside)[1]


@pytest.mark.parametrize("number", NEVER_OVERFLOW)
@pytest.mark.parametrize("value", [0, PLACE + (3 << 50), MASK])
def test_unchecked_relocation_never_overflows(number, value):
    assert apply(number, 0, value)[1]


@pytest.mark.parametrize(
    ("number", "size", "value", "expected"),
    [
        (257, 8, 0xFEDC_BA98_7654_3210, 0xFEDC_BA98_7654_3210),
        (258, 4, 0xFEDC_BA98, 0xFEDC_BA98),
        (259, 2, 0xFEDC, 0xFEDC),
        (260, 8, PLACE - 16, -16 & MASK),
        (261, 4, PLACE - 16, -16 & 0xFFFF_FFFF),
        (262, 2, PLACE - 16, -16 & 0xFFFF),
    ],
)
def test_data_relocation_writes_exactly_its_width(number, size, value, expected):
    memory = bytearray(b"\xaa" * 16)
    assert APPLIERS[number](memory, 4, PLACE, value)
    assert int.from_bytes(memory[4 : 4 + size], "little") == expected
    assert memory[:4] == b"\xaa" * 4
    assert memory[4 + size :] == b"\xaa" * (12 - size)


@pytest.mark.parametrize("number", [0, 256])
def test_none_relocation_changes_nothing(number):
    assert apply(number, NOP, MASK) == (NOP, True)


def test_every_row_is_covered_by_a_value_test():
    data = {0, 256, 257, 258, 259, 260, 261, 262}
    assert {row[0] for row in VALUES} | data == set(RELOCATION_TYPES)


def test_every_checked_row_is_covered_by_a_limit_test():
    assert {row[0] for row in LIMITS} | set(NEVER_OVERFLOW) == set(RELOCATION_TYPES)


def link_one(number: int, value: int, addend: int = 0, offset: int = 0x14):
    elf = ElfBuilder()
    text = elf.text(".text", *[NOP] * 8)
    elf.function("init_module", text, 4)
    target = elf.symbol("foo", ABS, value)
    elf.rela(text, (offset, number, target, addend))
    module = ModuleFile.parse(elf.build(), "m.ko")
    return link(module, Layout.assign(module, 0xFFFF_FFC0_0000_0000), lambda name: None)


def test_overflow_names_the_relocation_the_place_the_function_and_the_target():
    with pytest.raises(RelocationError) as error:
        link_one(280, 0xFFFF_FFC0_0100_0014)
    expected = "m.ko: R_AARCH64_CONDBR19 at .text+0x14 (init_module+0x10): target foo is 0x1000000 away, beyond ±1 MiB"
    assert str(error.value) == expected


def test_overflow_of_an_absolute_value_says_what_does_not_fit():
    with pytest.raises(
        RelocationError, match=r"target foo\+0x8 is at 0x100000008, which does not fit into 0..0xffffffff"
    ):
        link_one(258, 0x1_0000_0000, 8)


@pytest.mark.parametrize(
    ("number", "name"), [(311, "R_AARCH64_ADR_GOT_PAGE"), (314, "R_AARCH64_PLT32"), (9999, "unknown")]
)
def test_unknown_type_is_refused_with_its_number_and_name(number, name):
    assert relocation_name(number) == name
    with pytest.raises(RelocationError) as error:
        link_one(number, 0)
    expected = f"m.ko: unsupported relocation type {number} ({name}) in section .text at .text+0x14 (init_module+0x10)"
    assert str(error.value) == expected


def test_a_relocation_that_reaches_beyond_its_section_is_refused():
    with pytest.raises(RelocationError, match=r"R_AARCH64_ABS64 at \.text\+0x1c .* reaches beyond the end of \.text"):
        link_one(257, 0, offset=0x1C)
