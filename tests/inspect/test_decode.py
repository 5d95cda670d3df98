"""Words decode to what the data flow needs, and an instruction that is not followed gives up every register it writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.inspect import decode as d
from pkvm_emu.inspect.values import Value, add, join, plus

_ROWS = [
    (0xF9400C09, (d.LOAD, 9, 0, 24, 8, 0, -1, 0), "ldr x9, [x0, #24]"),
    (0xF85F812A, (d.LOAD, 10, 9, -8, 8, 0, -1, 0), "ldur x10, [x9, #-8]"),
    (0xF8428E68, (d.LOAD, 8, 19, 40, 8, 1, -1, 0), "ldr x8, [x19, #40]!"),
    (0xF84407F9, (d.LOAD, 25, d.SP, 64, 8, 2, -1, 0), "ldr x25, [sp], #64"),
    (0xF8686AE0, (d.LOAD, 0, 23, 0, 8, 0, 8, 0), "ldr x0, [x23, x8]"),
    (0xA9BE7BFD, (d.STORE, 29, d.SP, -32, 8, 1, -1, 0, 30), "stp x29, x30, [sp, #-32]!"),
    (0xA9417BFD, (d.LOAD, 29, d.SP, 16, 8, 0, -1, 0, 30), "ldp x29, x30, [sp, #16]"),
    (0xB9800169, (d.LOAD, 9, 11, 0, -4, 0, -1, 0), "ldrsw x9, [x11]"),
    (0xAA0003F3, (d.MOV, 19, 0, 1), "mov x19, x0"),
    (0xD2C00208, (d.CONST, 8, 0x10_0000_0000), "mov x8, #0x1000000000"),
    (0x128002A0, (d.CONST, 0, 0xFFFFFFEA), "mov w0, #-22"),
    (0x72B84000, (d.MOVK, 0, 0xC200, 16, 0), "movk w0, #0xc200, lsl #16"),
    (0xD10083FF, (d.ADDI, d.SP, d.SP, -0x20, 1), "sub sp, sp, #0x20"),
    (0xF100011F, (d.ADDI, d.SINK, 8, 0, 1), "cmp x8, #0"),
    (0x8B0A116B, (d.ADDR, 11, 11, 10, 4, 1), "add x11, x11, x10, lsl #4"),
    (0x9A880128, (d.CSEL, 8, 9, 8, 1), "csel x8, x9, x8, eq"),
    (0xD63F0120, (d.CALLREG, 9), "blr x9"),
    (0xD61F0300, (d.BRREG, 24), "br x24"),
    (0xD4000003, (d.SMC, 0), "smc #0"),
    (0xD65F0BFF, (d.RET,), "retaa"),
    (0x885FFD2A, (d.CLOBBER, 10, d.SINK, d.SINK), "ldaxr w10, [x9]"),
    (0xB8AC012A, (d.CLOBBER, 10), "ldadda w12, w10, [x9]"),
    (0xD5384108, (d.CLOBBER, 8), "mrs x8, sp_el0"),
    (0xF9800131, (d.NOP,), "prfm pstl1strm, [x9]"),
    (0xD503233F, (d.NOP,), "paciasp"),
]


@pytest.mark.parametrize(("word", "expected", "text"), _ROWS, ids=[row[2] for row in _ROWS])
def test_instructions(word: int, expected: d.Insn, text: str) -> None:
    assert d.decode(word) == expected


_FOLDED = st.integers(0, 0xFF_FFFF).flatmap(
    lambda low: st.sampled_from([top << 24 | low for top in (0x53, 0xD3, 0x92, 0x12)])
)


@given(st.one_of(st.integers(0, 0xFFFF_FFFF), _FOLDED))
def test_every_word_decodes_to_registers_that_exist(word: int) -> None:
    operation = d.decode(word)
    registers = {d.LOAD: (1, 2), d.STORE: (1, 2), d.MOV: (1, 2), d.CSEL: (1, 2, 3), d.ADDI: (1, 2), d.ADDR: (1, 2, 3)}
    indices = operation[1:] if operation[0] == d.CLOBBER else [operation[at] for at in registers.get(operation[0], ())]
    assert all(0 <= index < d.REGISTERS for index in indices)
    if operation[0] == d.FOLD:
        assert 0 <= d.fold_function(word, 0xFFFF_FFFF_FFFF_FFFF) < 1 << 64


@pytest.mark.parametrize(
    ("word", "before", "after"),
    [
        (0x92401D02, 0x1234, 0x34),  # and x2, x8, #0xff
        (0xB2400000, 0x10, 0x11),  # orr x0, x0, #1
        (0xD34CFC00, 0x48000_000, 0x48000),  # lsr x0, x0, #12
        (0x53103D08, 0x2000, 0x2000_0000),  # lsl w8, w8, #16
    ],
)
def test_constants_are_folded(word: int, before: int, after: int) -> None:
    assert d.decode(word)[0] == d.FOLD
    assert d.fold_function(word, before) == after


_VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.integers(0, 3),
    st.tuples(st.sampled_from("sul"), st.integers(0, 24)),
    st.tuples(st.sampled_from("of"), st.one_of(st.none(), st.integers(0, 24))),
)


@given(_VALUES, _VALUES, _VALUES)
def test_joining_is_symmetric_and_never_goes_down(first: Value, second: Value, third: Value) -> None:
    joined = join(first, second)
    assert joined == join(second, first)
    assert join(joined, first) == joined
    assert join(join(joined, third), first) == join(joined, third)


def test_what_may_be_an_op_stays_one() -> None:
    assert join(("f", 8), None) == ("f", 8)
    assert join(7, ("o", 0)) == ("o", 0)


def test_an_address_survives_an_unknown_summand() -> None:
    assert add(None, 0x1000, lambda value: value == 0x1000) == ("u", 0x1000)
    assert plus(("o", 0), 16) == ("o", 16)
