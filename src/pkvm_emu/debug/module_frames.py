"""Unwind rules of a module's half: its own, made fit for both levels, and for functions without any, from their code.

A module's own rules are in ``.debug_frame``, and for builds with unwind tables in an ``.eh_frame`` section
under a name of the kernel's
linker script that no debugger looks for. They say that return addresses are signed and leave the rest to the debugger; here the
rule itself takes the signature off.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from pkvm_emu.arch.insn import ERET, RET
from pkvm_emu.debug import cfi
from pkvm_emu.debug.cfi import REG_SP, X30, FrameTable

_OFFSET = 0x80
#: Operands of the instructions that have no number in their first byte: u unsigned, s signed LEB128, 1 2 4 8 bytes, b block.
_OPERANDS = {
    0x00: "", 0x01: "8", 0x02: "1", 0x03: "2", 0x04: "4", 0x05: "uu", 0x06: "u", 0x07: "u", 0x08: "u", 0x09: "uu", 0x0A: "",
    0x0B: "", 0x0C: "uu", 0x0D: "u", 0x0E: "u", 0x0F: "b", 0x10: "ub", 0x11: "us", 0x12: "us", 0x13: "s", 0x14: "uu", 0x15: "us",
    0x16: "ub", 0x2D: "", 0x2E: "u",
}  # fmt: skip
_NEGATE_RA_STATE, _OFFSET_EXTENDED, _OFFSET_EXTENDED_SF = 0x2D, 0x05, 0x11
_CIE_IDS = (0xFFFF_FFFF, 0)
_STP_PRE, _LDP_POST, _STP, _STR, _PAIR_MASK = 0xA980_0000, 0xA8C0_0000, 0xA900_0000, 0xF900_0000, 0xFFC0_0000
_STR_PRE, _LDR_POST, _SINGLE_MASK = 0xF800_0C00, 0xF840_0400, 0xFFE0_0C00
_SUB_SP, _ADD_SP, _SP_MASK = 0xD100_03FF, 0x9100_03FF, 0xFF80_03FF
_CALLEE_SAVED = range(19, 31)


class Unreadable(ValueError):
    """Rules that cannot be read."""


@dataclass(slots=True)
class _Common:
    code_factor: int = 1
    data_factor: int = -8
    instructions: bytes = b""
    augmentation: str = ""
    out: int = 0


@dataclass(slots=True)
class ModuleFrames:
    """Collects the rules of one half.

    Attributes:
        el: 1 or 2.
        va_bits: of addresses there.
    """

    el: int
    va_bits: int
    table: FrameTable = field(default_factory=FrameTable)
    _known: list[tuple[int, int]] = field(default_factory=list)
    _full: tuple[int, bytes] = (0, b"")

    def add_section(self, data: bytes, address: int | None) -> None:
        """Take over the rules of a section whose relocations are applied; what cannot be read is left out.

        Args:
            data: its bytes.
            address: its VA for an ``.eh_frame``, None for a ``.debug_frame``.
        """
        commons: dict[int, _Common] = {}
        at = 0
        while at + 8 <= len(data):
            size, identity = struct.unpack_from("<II", data, at)
            end = at + 4 + size
            if not size or size >= 0xFFFF_FFF0 or end > len(data):
                return
            try:
                if identity == _CIE_IDS[address is not None]:
                    commons[at] = self._read_common(data, at + 8, end)
                else:
                    key = identity if address is None else at + 4 - identity
                    if key in commons:
                        self._read_frame(data, at + 8, end, commons[key], address)
            except (Unreadable, IndexError, struct.error):
                pass
            at = end

    def covers(self, va: int) -> bool:
        """Whether a function has rules."""
        return any(start <= va < end for start, end in self._known)

    def add_function(self, start: int, code: bytes) -> None:
        """Work out the rules of a function from its instructions."""
        self.table.add(start, len(code), list(self._scan(code)))

    def _read_common(self, data: bytes, at: int, end: int) -> _Common:
        version = data[at]
        stop = data.index(0, at + 1)
        augmentation = data[at + 1 : stop].decode("ascii", "replace")
        at = stop + 1 + (2 if version >= 4 else 0)
        code_factor, at = _uleb(data, at)
        data_factor, at = _sleb(data, at)
        _, at = (data[at], at + 1) if version == 1 else _uleb(data, at)
        if augmentation.startswith("z"):
            size, at = _uleb(data, at)
            at += size
        elif augmentation:
            raise Unreadable(augmentation)
        found = _Common(code_factor, data_factor, augmentation=augmentation)
        # Compilers leave out that x30 is at first where it was; for lldb that is "unknown" above an exception.
        found.instructions = cfi.in_register(X30, X30) + self._convert(data[at:end], found)
        found.out = self.table.common(code_factor, data_factor, X30, found.instructions)
        return found

    def _read_frame(self, data: bytes, at: int, end: int, common: _Common, address: int | None) -> None:
        if address is None:
            start, size = struct.unpack_from("<QQ", data, at)
            at += 16
        else:
            # 32 bits relative to the place, as every AArch64 compiler writes it.
            distance, size = struct.unpack_from("<iI", data, at)
            start = address + at + distance & (1 << 64) - 1
            at += 8
            skipped, at = _uleb(data, at) if common.augmentation else (0, at)
            at += skipped
        if not start or not size:
            return
        self._known.append((start, start + size))
        self.table.add_raw(common.out, start, size, self._convert(data[at:end], common))

    def _convert(self, data: bytes, common: _Common) -> bytes:
        """The instructions with x30's place made a value without signature."""
        out = bytearray()
        at = 0
        while at < len(data):
            first = at
            high, low = data[at] & 0xC0, data[at] & 0x3F
            at += 1
            if high == _OFFSET:
                factored, at = _uleb(data, at)
                if low == X30:
                    out += self._return_address(factored * common.data_factor)
                    continue
            elif not high:
                operands, at = _skip(data, at, low)
                if low == _NEGATE_RA_STATE:
                    continue
                if low in (_OFFSET_EXTENDED, _OFFSET_EXTENDED_SF) and operands[0] == X30:
                    out += self._return_address(operands[1] * common.data_factor)
                    continue
            out += data[first:at]
        return bytes(out)

    def _return_address(self, offset: int) -> bytes:
        return cfi.saved_return_address(offset, self.el, self.va_bits)

    def _scan(self, code: bytes) -> Iterable[tuple[int, bytes]]:
        """Rules by the usual shape of compiled functions; after a return in the middle the frame is what it
        was before its epilogue."""
        frame, saves = 0, b""
        full = b""
        for at in range(0, len(code) - 3, 4):
            word = int.from_bytes(code[at : at + 4], "little")
            rn, rt, rt2 = word >> 5 & 31, word & 31, word >> 10 & 31
            offset = ((word >> 15 & 0x7F ^ 0x40) - 0x40) * 8
            is_epilogue = False
            if word & _PAIR_MASK == _STP_PRE and rn == REG_SP:
                frame -= offset
                saves += self._save(rt, -frame) + self._save(rt2, 8 - frame)
            elif word & _SINGLE_MASK == _STR_PRE and rn == REG_SP:
                frame -= (word >> 12 & 0x1FF ^ 0x100) - 0x100
                saves += self._save(rt, -frame)
            elif word & _SINGLE_MASK == _LDR_POST and rn == REG_SP:
                frame -= (word >> 12 & 0x1FF ^ 0x100) - 0x100
                is_epilogue = True
            elif word & _PAIR_MASK == _STP and rn == REG_SP and frame and rt in _CALLEE_SAVED:
                saves += self._save(rt, offset - frame) + self._save(rt2, offset - frame + 8)
            elif word & _PAIR_MASK == _STR and rn == REG_SP and frame and rt in _CALLEE_SAVED:
                saves += self._save(rt, (word >> 10 & 0xFFF) * 8 - frame)
            elif word & _SP_MASK == _SUB_SP:
                frame += _immediate(word)
            elif word & _SP_MASK == _ADD_SP and frame:
                frame -= _immediate(word)
                is_epilogue = True
            elif word & _PAIR_MASK == _LDP_POST and rn == REG_SP:
                frame -= offset
                is_epilogue = True
            elif word in (RET, ERET) and full:
                yield at + 4, full
                frame, saves = self._full
                continue
            else:
                continue
            if is_epilogue:
                same = b"".join(cfi.unchanged(register) for register in _CALLEE_SAVED) if frame <= 0 else b""
                yield at + 4, cfi.cfa(REG_SP, max(frame, 0)) + same
            else:
                full = cfi.cfa(REG_SP, frame) + saves
                self._full = frame, saves
                yield at + 4, full

    def _save(self, register: int, offset: int) -> bytes:
        return self._return_address(offset) if register == X30 else cfi.saved(register, offset)


def _immediate(word: int) -> int:
    return (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)


def _skip(data: bytes, at: int, opcode: int) -> tuple[list[int], int]:
    shape = _OPERANDS.get(opcode)
    if shape is None:
        raise Unreadable(f"unknown instruction {opcode:#x}")
    values = []
    for kind in shape:
        if kind == "u":
            value, at = _uleb(data, at)
        elif kind == "s":
            value, at = _sleb(data, at)
        elif kind == "b":
            value, at = _uleb(data, at)
            at += value
        else:
            value, at = int.from_bytes(data[at : at + int(kind)], "little"), at + int(kind)
        values.append(value)
    return values, at


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    start = at
    value, at = _uleb(data, at)
    bits = 7 * (at - start)
    return value - (1 << bits) if value >> (bits - 1) & 1 else value, at
