"""Encoders and questions about single instructions, against an assembler where it can assemble them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.arch import insn
from pkvm_emu.arch.insn import BranchRangeError, Cond

PC = 0xFFFF_FFC0_1000_0000
REG = st.integers(0, 30)
IMM16 = st.integers(0, 0xFFFF)


def near(words):
    return st.integers(-words, words - 1).map(lambda n: PC + 4 * n & (1 << 64) - 1)


@pytest.fixture(scope="module")
def asm():
    keystone = pytest.importorskip("keystone", reason="no keystone wheel for this host")
    engine = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)

    def assemble(text, address=0):
        data, _ = engine.asm(text, address)
        return int.from_bytes(bytes(data), "little")

    return assemble


@pytest.mark.parametrize("name", ["svc", "hvc", "smc", "brk"])
@given(imm=IMM16)
def test_exception_instructions_carry_their_immediate(asm, name, imm):
    word = getattr(insn, name)(imm)
    assert word == asm(f"{name} #{imm}")
    answers = {other: getattr(insn, f"is_{other}")(word) for other in ("svc", "hvc", "smc", "brk")}
    assert answers == {other: imm if other == name else None for other in answers}


@given(distance=st.integers(-(1 << 25), (1 << 25) - 1))
def test_b_and_bl_match_the_assembler_over_their_whole_range(asm, distance):
    at = 0x1000_0000
    target = at + 4 * distance
    assert insn.b(at, target) == asm(f"b #{target}", at)
    assert insn.bl(at, target) == asm(f"bl #{target}", at)


@given(distance=st.integers(-(1 << 18), (1 << 18) - 1), rt=REG, cond=st.sampled_from(list(Cond)[:14]))
def test_conditional_branches_match_the_assembler(asm, distance, rt, cond):
    at = 0x1000_0000
    target = at + 4 * distance
    assert insn.b_cond(cond, at, target) == asm(f"b.{cond.name.lower()} #{target}", at)
    assert insn.cbz(rt, at, target) == asm(f"cbz x{rt}, #{target}", at)
    assert insn.cbnz(rt, at, target, wide=False) == asm(f"cbnz w{rt}, #{target}", at)


@given(distance=st.integers(-(1 << 13), (1 << 13) - 1), rt=REG, bit=st.integers(32, 63))
def test_test_bit_branches_match_the_assembler(asm, distance, rt, bit):
    at = 0x1000_0000
    target = at + 4 * distance
    assert insn.tbz(rt, bit, at, target) == asm(f"tbz x{rt}, #{bit}, #{target}", at)
    assert insn.tbnz(rt, bit - 32, at, target) == asm(f"tbnz w{rt}, #{bit - 32}, #{target}", at)


@given(rd=REG, imm=IMM16, shift=st.sampled_from([0, 16, 32, 48]))
def test_wide_moves_match_the_assembler(asm, rd, imm, shift):
    assert insn.movz(rd, imm, shift) == asm(f"movz x{rd}, #{imm}, lsl #{shift}")
    assert insn.movk(rd, imm, shift) == asm(f"movk x{rd}, #{imm}, lsl #{shift}")


@given(value=st.integers(0, (1 << 64) - 1))
def test_a_64_bit_constant_is_built_from_at_most_four_moves(value):
    result = 0
    words = insn.mov_imm64(5, value)
    assert 1 <= len(words) <= 4
    for word in words:
        shift, imm = (word >> 21 & 3) * 16, word >> 5 & 0xFFFF
        result = (0 if word >> 29 == 6 else result & ~(0xFFFF << shift)) | imm << shift
    assert result == value


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (insn.NOP, "nop"),
        (insn.RET, "ret"),
        (insn.ERET, "eret"),
        (insn.WFI, "wfi"),
        (insn.WFE, "wfe"),
        (insn.ISB, "isb"),
        (insn.DSB_SY, "dsb sy"),
        (insn.PACIASP, "hint #25"),
        (insn.AUTIASP, "hint #29"),
        (insn.BTI, "hint #32"),
        (insn.BTI_C, "hint #34"),
        (insn.BTI_J, "hint #36"),
        (insn.BTI_JC, "hint #38"),
        (insn.br(17), "br x17"),
        (insn.blr(8), "blr x8"),
        (insn.ret(9), "ret x9"),
    ],
)
def test_fixed_words_match_the_assembler(asm, word, text):
    assert word == asm(text)


@given(target=near(1 << 13), new_pc=near(1 << 12))
@pytest.mark.parametrize(
    "encode",
    [
        insn.b,
        insn.bl,
        lambda pc, target: insn.b_cond(Cond.NE, pc, target),
        lambda pc, target: insn.cbz(3, pc, target),
        lambda pc, target: insn.tbnz(3, 40, pc, target),
        lambda pc, target: insn.adr(3, pc, target),
    ],
    ids=["b", "bl", "b.ne", "cbz", "tbnz", "adr"],
)
def test_a_moved_branch_keeps_its_target_and_everything_else(encode, target, new_pc):
    try:
        expected = encode(new_pc, target)
        word = encode(PC, target)
    except BranchRangeError:
        return
    assert insn.retarget(word, PC, new_pc) == expected
    assert (insn.branch_target(expected, new_pc) or insn.adr_target(expected, new_pc)) == target


@given(page=st.integers(-(1 << 20), (1 << 20) - 1), low=st.integers(0, 0xFFF))
def test_adrp_names_the_page_of_its_target(page, low):
    target = PC + 4096 * page + low
    assert insn.adr_target(insn.adrp(2, PC + 8, target), PC + 8) == target & ~0xFFF


def test_adrp_matches_the_assembler(asm):
    assert insn.adrp(4, 0x1000_0008, 0x1234_5678) == asm("adrp x4, #0x12345000", 0x1000_0000)


def test_branches_out_of_range_or_unaligned_are_refused():
    with pytest.raises(BranchRangeError, match="cannot reach"):
        insn.b(PC, PC + (1 << 27))
    with pytest.raises(BranchRangeError):
        insn.b(PC, PC + 2)
    with pytest.raises(BranchRangeError):
        insn.retarget(insn.tbz(0, 1, PC, PC + 16), PC, PC + (1 << 20))


def test_branches_cross_the_top_of_the_address_space():
    top = (1 << 64) - 8
    assert insn.branch_target(insn.b(top, 0x10), top) == 0x10


def test_words_that_are_no_branch_have_no_target_and_move_unchanged():
    for word in (insn.NOP, insn.RET, insn.hvc(3), insn.blr(8)):
        assert insn.branch_target(word, PC) is None
        assert insn.retarget(word, PC, PC + 64) == word


def test_a_kcfi_trap_names_its_two_registers():
    assert insn.kcfi_brk_registers(0x8228) == (17, 8)
    assert insn.kcfi_brk_registers(insn.KERNEL_BUG_IMM) is None
    assert insn.kcfi_brk_registers(0x8400) is None


def test_register_branches_say_which_register():
    assert (insn.is_blr(insn.blr(8)), insn.is_br(insn.br(16)), insn.is_ret(insn.RET)) == (8, 16, 30)
    assert (insn.is_blr(insn.br(8)), insn.is_br(insn.RET), insn.is_ret(insn.ERET)) == (None, None, None)


@given(word=st.integers(0, (1 << 32) - 1))
def test_any_word_can_be_asked_anything(word):
    target = insn.branch_target(word, PC)
    if target is not None:
        assert insn.retarget(word, PC, PC) == word
    found = insn.sysreg_access(word)
    assert found is None or word >> 20 & 0xFFF in (0xD51, 0xD53)
