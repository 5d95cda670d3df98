"""The constants that instruction words make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch.constants import MadeConstant, bitmask, lsr_immediate, made_constants
from pkvm_emu.arch.insn import mov_imm64, movk, movz

NOP = 0xD503_201F
ORR_X0_X0_PAGE_OFFSET_39 = 0xB259_6000
MOV_X1_PAGE_OFFSET_48 = 0xB250_3FE1
MOVN_X2_0 = 0x9280_0002


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 30))
def test_every_constant_that_wide_moves_make_is_seen(value: int, register: int) -> None:
    found = made_constants([NOP, *mov_imm64(register, value)])
    assert found[0] == MadeConstant(1, value, is_or=False)


@pytest.mark.parametrize(
    ("word", "value", "is_or"),
    [
        (ORR_X0_X0_PAGE_OFFSET_39, 0xFFFF_FF80_0000_0000, True),
        (MOV_X1_PAGE_OFFSET_48, 0xFFFF_0000_0000_0000, False),
        (MOVN_X2_0, 0xFFFF_FFFF_FFFF_FFFF, False),
    ],
)
def test_an_immediate_is_a_constant(word: int, value: int, is_or: bool) -> None:
    assert made_constants([word]) == [MadeConstant(0, value, is_or)]


def test_parts_may_be_apart_and_those_of_another_register_do_not_count() -> None:
    code = [movz(3, 0x1234), NOP, movk(4, 0xFFFF, 16), movk(3, 0x5678, 48), NOP, NOP, NOP, NOP, movk(3, 1, 32)]
    assert made_constants(code)[0].value == 0x5678_0000_0000_1234


def test_narrow_moves_and_other_instructions_make_no_constant() -> None:
    assert made_constants([0x5280_0020, NOP, 0xF940_0000, 0x9240_0000]) == []


def test_a_reserved_immediate_is_none() -> None:
    assert bitmask(0xB200_FC00) is None
    assert bitmask(0x3240_0000) is None


@pytest.mark.parametrize(("word", "shift"), [(0xD36F_FD6C, 47), (0xD366_FD6C, 38), (0xD340_0C00, None), (NOP, None)])
def test_a_shift_right_says_how_far(word: int, shift: int | None) -> None:
    assert lsr_immediate(word) == shift
