"""Instruction words as the few operations that the data flow distinguishes.

An instruction is a tuple of an operation and its operands. Register operands are indices of the analysis' register
file: 0 to 30, :data:`SP`, :data:`ZERO` (reads as 0), :data:`SINK` (writes to xzr) and :data:`UNKNOWN` (an operand that is not
followed). What is not followed becomes ``CLOBBER`` with the registers that it may write, so that no stale value survives.
Source: Arm ARM (DDI 0487), C4.1.
"""

from __future__ import annotations

from functools import lru_cache

from pkvm_emu.arch.constants import bitmask
from pkvm_emu.arch.insn import is_brk, is_hvc, is_smc, kcfi_brk_registers

SP, ZERO, SINK, UNKNOWN, REGISTERS = 31, 32, 33, 34, 35

NOP, CONST, ADRP, ADR, ADDI, ADDR, SUBR, MOVK, MOV, FOLD, CSEL, LOAD, STORE, CLOBBER, LITERAL = range(15)
JUMP, CALL, BRANCH, BRREG, CALLREG, RET, SMC, HVC, BRK, STOP = range(20, 30)
#: Operations that end a basic block; CALL and CALLREG do not.
ENDS = frozenset({JUMP, BRANCH, BRREG, RET, STOP})

Insn = tuple[int, ...]
_NOTHING: Insn = (NOP,)


def _src(number: int) -> int:
    return ZERO if number == 31 else number


def _dst(number: int) -> int:
    return SINK if number == 31 else number


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) & 1 else value


@lru_cache(maxsize=65536)
def decode(word: int) -> Insn:
    """Decode one word. Branch operands are byte distances from the instruction.

    ``CONST rd value`` · ``ADRP/ADR rd distance`` · ``ADDI rd rn immediate is64`` · ``ADDR/SUBR rd rn rm shift is64`` ·
    ``MOVK rd immediate shift`` · ``MOV rd rn is64`` · ``FOLD rd rn word`` · ``CSEL rd rn rm is64`` ·
    ``LOAD/STORE rt rn offset size writeback index shift`` (writeback 0 none, 1 before, 2 after; index -1 without) ·
    ``CLOBBER registers...``
    """
    group = word >> 25 & 15
    if group in (8, 9):
        return _immediate(word)
    if group in (10, 11):
        return _branch_or_system(word)
    if group & 5 == 4:
        return _memory(word)
    if group & 7 == 5:
        return _register(word)
    if group == 0 and word >> 16 == 0:
        return (STOP,)  # UDF
    return (CLOBBER, _dst(word & 31))


def _immediate(word: int) -> Insn:
    rd, rn, is64 = word & 31, word >> 5 & 31, word >> 31
    if word & 0x1F000000 == 0x10000000:
        distance = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
        return (ADRP, _dst(rd), distance << 12) if is64 else (ADR, _dst(rd), distance)
    if word & 0x1F800000 == 0x11000000:
        amount = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
        if word >> 30 & 1:
            amount = -amount
        sets_flags = word >> 29 & 1
        return (ADDI, _dst(rd) if sets_flags else rd, rn, amount, is64)
    if word & 0x1F800000 == 0x12000000:
        sets_flags = word >> 29 & 3 == 3
        target = _dst(rd) if sets_flags else rd
        return (CLOBBER, target) if bitmask(word) is None else (FOLD, target, _src(rn), word)
    if word & 0x1F800000 == 0x12800000:
        shift, immediate = (word >> 21 & 3) * 16, word >> 5 & 0xFFFF
        opcode = word >> 29 & 3
        if opcode == 3:
            return (MOVK, _dst(rd), immediate, shift, is64)
        value = immediate << shift
        mask = 0xFFFF_FFFF_FFFF_FFFF if is64 else 0xFFFF_FFFF
        return (CONST, _dst(rd), value & mask if opcode == 2 else ~value & mask)
    if word & 0x7F800000 == 0x53000000:  # UBFM: LSL, LSR, UBFX
        is_reserved = not is64 and word & 0x00608000
        return (CLOBBER, _dst(rd)) if is_reserved else (FOLD, _dst(rd), _src(rn), word)
    return (CLOBBER, _dst(rd))


def _branch_or_system(word: int) -> Insn:
    if word & 0x7C000000 == 0x14000000:
        return (CALL if word >> 31 else JUMP, _signed(word & 0x3FFFFFF, 26) << 2)
    if word & 0x7E000000 == 0x34000000 or word & 0xFF000000 == 0x54000000:
        return (BRANCH, _signed(word >> 5 & 0x7FFFF, 19) << 2)
    if word & 0x7E000000 == 0x36000000:
        return (BRANCH, _signed(word >> 5 & 0x3FFF, 14) << 2)
    if word & 0xFE000000 == 0xD6000000:
        return _branch_register(word)
    if word & 0xFF000000 == 0xD4000000:
        for operation, immediate in ((SMC, is_smc(word)), (HVC, is_hvc(word)), (BRK, is_brk(word))):
            if immediate is not None:
                return (operation, immediate)
        return _NOTHING
    if word & 0xFFF00000 == 0xD5300000 or word & 0xFFF80000 == 0xD5280000:  # MRS, SYSL
        return (CLOBBER, _dst(word & 31))
    return _NOTHING


def _branch_register(word: int) -> Insn:
    opcode, rn = word >> 21 & 15, word >> 5 & 31
    if opcode & 7 == 0:
        return (BRREG, _src(rn))
    if opcode & 7 == 1:
        return (CALLREG, _src(rn))
    return (RET,) if opcode == 2 else (STOP,)


def _memory(word: int) -> Insn:
    rt, rn = word & 31, word >> 5 & 31
    is_vector = word >> 26 & 1
    if word & 0x3A000000 == 0x28000000:
        return _pair(word)
    if word & 0x3B000000 == 0x18000000:
        if is_vector or word >> 30 == 3:
            return _NOTHING
        size = 8 if word >> 30 == 1 else 4
        return (LITERAL, _dst(rt), _signed(word >> 5 & 0x7FFFF, 19) << 2, size)
    if word & 0x3A000000 == 0x38000000:
        return _single(word)
    if word & 0x3F000000 == 0x08000000:
        return _exclusive(word)
    if is_vector:
        return (CLOBBER, rn) if word >> 23 & 1 else _NOTHING
    return (CLOBBER, _dst(rt), rn if word >> 10 & 1 else SINK)


def _single(word: int) -> Insn:
    rt, rn, size, opcode = word & 31, word >> 5 & 31, 1 << (word >> 30), word >> 22 & 3
    is_vector = word >> 26 & 1
    offset, mode, index, shift = 0, 0, -1, 0
    if word >> 24 & 1:
        offset = (word >> 10 & 0xFFF) * size
    elif word >> 21 & 1:
        kind = word >> 10 & 3
        if kind == 0 and not is_vector:  # LSE atomics; Rt receives the old value
            return (CLOBBER, _dst(rt))
        if kind != 2:
            return (CLOBBER, _dst(rt), rn if kind == 3 else SINK)
        index, shift = _src(word >> 16 & 31), (size.bit_length() - 1 if word >> 12 & 1 else 0)
    else:
        offset = _signed(word >> 12 & 0x1FF, 9)
        mode = {1: 2, 3: 1}.get(word >> 10 & 3, 0)
    if is_vector:
        return (ADDI, rn, rn, offset, 1) if mode else _NOTHING
    if opcode == 0:
        return (STORE, _src(rt), rn, offset, size, mode, index, shift)
    if opcode == 2 and size == 8:  # PRFM
        return _NOTHING
    # A sign-extending load is followed as far as that its target is written.
    return (LOAD, _dst(rt), rn, offset, size if opcode == 1 else -size, mode, index, shift)


def _pair(word: int) -> Insn:
    mode = {1: 2, 3: 1}.get(word >> 23 & 3, 0)
    rn, kind = word >> 5 & 31, word >> 30
    if word >> 26 & 1:
        size = 4 << kind
        return (ADDI, rn, rn, _signed(word >> 15 & 0x7F, 7) * size, 1) if mode else _NOTHING
    size = 8 if kind == 2 else 4
    is_load = word >> 22 & 1
    registers = (word & 31, word >> 10 & 31)
    first, second = (_dst(r) if is_load else _src(r) for r in registers)
    return (LOAD if is_load else STORE, first, rn, _signed(word >> 15 & 0x7F, 7) * size, size, mode, -1, 0, second)


def _exclusive(word: int) -> Insn:
    rt, rn, size = word & 31, word >> 5 & 31, 1 << (word >> 30)
    is_load, is_ordered, is_pair = word >> 22 & 1, word >> 23 & 1, word >> 21 & 1
    if is_ordered and not is_pair:  # LDAR, STLR
        return (LOAD, _dst(rt), rn, 0, size, 0, -1, 0) if is_load else (STORE, _src(rt), rn, 0, size, 0, -1, 0)
    return (CLOBBER, _dst(rt), _dst(word >> 16 & 31), _dst(word >> 10 & 31))


def _register(word: int) -> Insn:
    rd, rn, rm, is64 = word & 31, word >> 5 & 31, word >> 16 & 31, word >> 31
    if word & 0x1F000000 == 0x0A000000:
        return _logical(word)
    if word & 0x1F000000 == 0x0B000000:
        if word >> 21 & 1:  # extended register: SP is possible, the amount is at most 4
            sets_flags = word >> 29 & 1
            shift = word >> 10 & 7
            target = _dst(rd) if sets_flags else rd
            if word >> 13 & 3 != 3:  # a byte, halfword or word that is extended
                return (ADDR, target, rn, UNKNOWN, 0, is64)
            return (SUBR if word >> 30 & 1 else ADDR, target, rn, _src(rm), shift, is64)
        shift = word >> 10 & 63 if word >> 22 & 3 == 0 else -1
        return (SUBR if word >> 30 & 1 else ADDR, _dst(rd), _src(rn), _src(rm), shift, is64)
    if word & 0x1FE00000 == 0x1A800000:
        if word & 0x40000C00:  # CSINC, CSINV, CSNEG change one of the sources
            return (CSEL, _dst(rd), _src(rn), UNKNOWN, is64)
        return (CSEL, _dst(rd), _src(rn), _src(rm), is64)
    if word & 0x1FE00000 == 0x1A400000:  # CCMP, CCMN
        return _NOTHING
    if word & 0xFFFF0000 == 0xDAC10000:  # PACIA, AUTIA, XPACI ...: the same pointer for the analysis
        return _NOTHING
    return (CLOBBER, _dst(rd))


def _logical(word: int) -> Insn:
    rd, rn, rm, is64 = word & 31, word >> 5 & 31, word >> 16 & 31, word >> 31
    is_plain = not word & 0x00E0FC00
    if word & 0x60000000 == 0x20000000 and is_plain:  # ORR without shift
        if rn == 31:
            return (MOV, _dst(rd), _src(rm), is64)
        if rm == 31:
            return (MOV, _dst(rd), _src(rn), is64)
    return (CLOBBER, _dst(rd))


def fold_function(word: int, value: int) -> int:
    """What the ``FOLD`` instruction ``word`` makes of the number ``value``."""
    mask = 0xFFFF_FFFF_FFFF_FFFF if word >> 31 else 0xFFFF_FFFF
    value &= mask
    if word & 0x1F800000 == 0x12000000:
        immediate = bitmask(word) or 0
        opcode = word >> 29 & 3
        return (value & immediate, value | immediate, value ^ immediate, value & immediate)[opcode] & mask
    right, last = word >> 16 & 63, word >> 10 & 63
    width = 64 if word >> 31 else 32
    if last >= right:
        return value >> right & (1 << (last - right + 1)) - 1
    return (value & (1 << (last + 1)) - 1) << (width - right) & mask


def is_kcfi_brk(instruction: Insn) -> bool:
    """True for the BRK that a failed kCFI check ends in."""
    return instruction[0] == BRK and kcfi_brk_registers(instruction[1]) is not None


def kcfi_type_before(words: tuple[int, ...], at: int) -> int | None:
    """The type id that the check ending in the BRK at index ``at`` compares with.

    The sequence is LDUR, MOVK low half, MOVK high half, CMP, B.EQ, BRK (clang).
    """
    if at < 4:
        return None
    low, high = words[at - 4], words[at - 3]
    if low & 0xFFE00000 != 0x72800000 or high & 0xFFE00000 != 0x72A00000:
        return None
    return (high >> 5 & 0xFFFF) << 16 | low >> 5 & 0xFFFF
