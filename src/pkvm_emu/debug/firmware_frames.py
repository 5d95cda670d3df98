"""Unwind rules of the firmware, worked out from its words.

Ordinary functions keep one convention (``stp x29, x30, [sp, #-n]!``, saves at fixed offsets, ``ldp`` in reverse), so
their rules follow from the instructions. What is special is written down here: the way from the host into EL2 and back, the
vectors of EL1, and the place where Python calls guest code. Their rules refer to :mod:`pkvm_emu.debug.window`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pkvm_emu.arch.insn import ERET, RET
from pkvm_emu.debug import cfi
from pkvm_emu.debug.cfi import REG_PC, REG_SP, X30, FrameTable
from pkvm_emu.debug.window import CALLER, EXCEPTION, OFFSET_MASK, PANIC, PANIC_PC, PANIC_SP

#: Loads and stores of one or two X registers relative to SP, x0 or x29, as (mask, value): pre-indexed and post-indexed
#: pairs, pairs and single stores at an offset.
_STP_PRE, _LDP_POST, _STP, _STR = 0xA980_0000, 0xA8C0_0000, 0xA900_0000, 0xF900_0000
_PAIR_MASK = 0xFFC0_0000
_MOV_X29_X0 = 0xAA00_03FD
_SYNC_FROM_LOWER = 0x400
_VECTOR_SIZE, _VECTORS_SIZE = 0x80, 0x800
_CONTEXT_REGISTERS = 31


def el2_frames(table: FrameTable, base: int, code: bytes, labels: Mapping[str, int]) -> None:
    """Add the rules of the EL2 firmware at ``base``."""
    words = _words(code)
    start, end = labels["host_exit"], labels["save_keys"]
    vector = labels["hyp_vectors"] + _SYNC_FROM_LOWER
    at_entry = _from_exception(cfi.address(EXCEPTION), cfi.address(EXCEPTION + 8))
    after_push = cfi.saved_at(0, cfi.register_plus(REG_SP, 0)) + cfi.saved_at(1, cfi.register_plus(REG_SP, 8))
    table.add(base + vector, _VECTOR_SIZE, [(0, at_entry), (4, after_push)], is_handler=True)
    table.add(base + start, end - start, [(0, at_entry + after_push), *_host_path(words, start, end)], is_handler=True)
    _functions(table, base, words, end, labels["panic_common"])
    _functions(table, base, words, labels["hyp_fault_load"], labels["text_end"])
    _panic(table, base, labels)
    _python(table, base + labels["return_to_python"])


def _panic(table: FrameTable, base: int, labels: Mapping[str, int]) -> None:
    """Rules of the ways into a panic. What calls its code is the vector, and what that interrupted was about to execute an
    instruction, which is the one at fault."""
    interrupted = _from_exception(cfi.address(PANIC_SP), cfi.address(PANIC_PC))
    interrupted += b"".join(cfi.saved_at(n, cfi.address(PANIC + 8 * n)) for n in range(X30 + 1))
    vectors, taken = base + labels["hyp_vectors"], base + labels["vector_hyp_sync"]
    table.add_interruption(taken, _VECTOR_SIZE, interrupted)
    host = vectors + _SYNC_FROM_LOWER
    for start, end in ((vectors, taken), (taken + _VECTOR_SIZE, host), (host + _VECTOR_SIZE, vectors + _VECTORS_SIZE)):
        table.add(start, end - start, [(0, interrupted)], is_handler=True)
    first, last = labels["panic_common"], labels["hyp_fault_load"]
    # The vector's one instruction is a branch; what follows it is a return address as debuggers expect one.
    table.add(base + first, last - first, [(0, cfi.value(REG_PC, cfi.address(taken + 8)))], is_handler=True)


def el1_frames(table: FrameTable, base: int, code: bytes, labels: Mapping[str, int]) -> None:
    """Add the rules of the EL1 firmware at ``base``."""
    first = labels["el1_vectors"]
    rules = _from_exception(cfi.address(EXCEPTION + 16), cfi.address(EXCEPTION + 24))
    table.add(base + first, _VECTORS_SIZE, [(0, rules)], is_handler=True)
    _functions(table, base, _words(code), labels["host_hvc"], labels["secondary_entry"])
    _python(table, base + labels["return_to_python"])


def guest_frames(table: FrameTable, base: int, code: bytes, labels: Mapping[str, int]) -> None:
    """Add the rules of the EL2 firmware that runs guests: all of it is one function, which a guest interrupts as a call does."""
    words = _words(code)
    start, end = labels["guest_enter"], labels["op_guest_load"]
    entered: list[tuple[int, bytes]] = []
    frame = _prologue(words, start, labels["guest_resume"], entered)
    pushed, same = cfi.cfa(REG_SP, frame + 16), b"".join(cfi.unchanged(n) for n in range(19, X30 + 1))
    saves = b"".join(rule for _, rule in entered)
    rules = list(entered)
    is_left = False
    for offset in range(labels["guest_exit"], end, 4):
        word = words[offset // 4]
        if offset == labels["guest_exit"]:
            rules.append((offset - start, saves + pushed))
        elif word & _PAIR_MASK == _LDP_POST and word >> 5 & 31 == REG_SP:
            is_left = offset > labels["guest_leave"]
            rules.append((offset + 4 - start, cfi.cfa(REG_SP, 0) + same if is_left else saves))
        elif word == RET and is_left:
            rules.append((offset + 4 - start, saves))
            is_left = False
    table.add(base + start, end - start, rules)
    table.add(base + labels["guest_vectors"] + _SYNC_FROM_LOWER, _VECTOR_SIZE, [(0, saves), (4, saves + pushed)])
    _functions(table, base, words, end, labels["kcfi_guest_smc"])


def _prologue(words: list[int], start: int, end: int, rules: list[tuple[int, bytes]]) -> int:
    """Add the rules of a function's first instructions; the size of its frame."""
    frame = 0
    for offset in range(start, end, 4):
        word = words[offset // 4]
        rn, rt, rt2 = word >> 5 & 31, word & 31, word >> 10 & 31
        pair_offset = ((word >> 15 & 0x7F ^ 0x40) - 0x40) * 8
        if word & _PAIR_MASK == _STP_PRE and rn == REG_SP:
            frame = -pair_offset
            saves = cfi.cfa(REG_SP, frame) + cfi.saved(rt, -frame) + cfi.saved(rt2, 8 - frame)
        elif word & _PAIR_MASK == _STP and rn == REG_SP and frame:
            saves = cfi.saved(rt, pair_offset - frame) + cfi.saved(rt2, pair_offset + 8 - frame)
        else:
            continue
        rules.append((offset + 4 - start, saves))
    return frame


def _words(code: bytes) -> list[int]:
    return [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code) & ~3, 4)]


def _from_exception(sp: bytes, pc: bytes) -> bytes:
    """The caller is what the exception interrupted; its SP and PC are the words at two addresses."""
    return cfi.cfa_expression(cfi.deref(sp)) + cfi.saved_at(REG_PC, pc)


def _host_path(words: list[int], start: int, end: int) -> list[tuple[int, bytes]]:
    """Rules along ``host_exit``: the host's registers go one after the other from the CPU into the host context."""
    rules: list[tuple[int, bytes]] = []
    pending = b""
    is_in_context = False
    for offset in range(start, end, 4):
        word = words[offset // 4]
        after = offset + 4 - start
        if word & 0xFFC0_7FFF == _LDP_POST | 3 << 10 | REG_SP << 5 | 2 and not is_in_context:
            # x0 and x1 of the host pass through x2 and x3.
            pending = cfi.in_register(0, 2) + cfi.in_register(1, 3)
            context = [cfi.saved_at(n, cfi.register_plus(0, 8 * n)) for n in range(2, _CONTEXT_REGISTERS)]
            rules.append((after, pending + b"".join(context)))
        elif word == _MOV_X29_X0:
            is_in_context = True
            saved = [cfi.saved_at(n, cfi.register_plus(29, 8 * n)) for n in range(_CONTEXT_REGISTERS)]
            places = _from_exception(cfi.register_plus(29, EXCEPTION), cfi.register_plus(29, EXCEPTION + 8))
            rules.append((after, places + b"".join(saved)))
        elif pending and word & _PAIR_MASK == _STP and word & 0x7FFF == 0 << 5 | 3 << 10 | 2:
            rules.append((after, cfi.saved_at(0, cfi.register_plus(0, 0)) + cfi.saved_at(1, cfi.register_plus(0, 8))))
            pending = b""
        elif word == ERET:
            # x29 is the host's again, and everything else too.
            same = b"".join(cfi.unchanged(n) for n in range(_CONTEXT_REGISTERS))
            rules.append((offset - start, _from_exception(cfi.address(EXCEPTION), cfi.address(EXCEPTION + 8)) + same))
    return rules


def _functions(table: FrameTable, base: int, words: list[int], start: int, end: int) -> None:
    """Rules of functions that keep the convention; a ``ret`` ends each."""
    first = start
    rules: list[tuple[int, bytes]] = []
    frame = 0
    for offset in range(start, end, 4):
        word = words[offset // 4]
        after = offset + 4 - first
        rn, rt, rt2 = word >> 5 & 31, word & 31, word >> 10 & 31
        pair_offset = ((word >> 15 & 0x7F ^ 0x40) - 0x40) * 8
        if word & _PAIR_MASK == _STP_PRE and rn == REG_SP:
            frame = -pair_offset
            saves = cfi.saved(rt, pair_offset) + cfi.saved(rt2, pair_offset + 8)
            rules.append((after, cfi.cfa(REG_SP, frame) + saves))
        elif word & _PAIR_MASK == _STP and rn == REG_SP and frame:
            rules.append((after, cfi.saved(rt, pair_offset - frame) + cfi.saved(rt2, pair_offset - frame + 8)))
        elif word & _PAIR_MASK == _STR and rn == REG_SP and frame:
            rules.append((after, cfi.saved(rt, (word >> 10 & 0xFFF) * 8 - frame)))
        elif word & _PAIR_MASK == _LDP_POST and rn == REG_SP:
            frame = 0
            same = b"".join(cfi.unchanged(n) for n in (*range(19, X30 + 1),))
            rules.append((after, cfi.cfa(REG_SP, 0) + same))
        elif word == RET:
            table.add(base + first, after, rules)
            first, rules, frame = offset + 4, [], 0
    if first < end:
        table.add(base + first, end - first, rules)


def _python(table: FrameTable, entry: int) -> None:
    """Where a call from Python returns to: its caller is the guest code whose service makes the call.

    The rules begin one byte early: unwinders look a return address up by the byte before it.
    """
    where = cfi.saved_at(X30, cfi.register_low_bits(REG_SP, OFFSET_MASK, CALLER))
    where += cfi.saved_at(REG_PC, cfi.register_low_bits(REG_SP, OFFSET_MASK, CALLER + 8))
    table.add(entry - 1, 5, [(0, where)], is_handler=True)
    # Its second instruction stands for Python itself, which nobody called.
    table.add(entry + 4, 4, [(0, cfi.undefined(X30) + cfi.undefined(REG_PC))], is_handler=True)
