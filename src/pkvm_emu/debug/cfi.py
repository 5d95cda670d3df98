"""Writing DWARF unwind rules (``.debug_frame``): the instructions that the firmware's rules need.

Source: DWARF 5, section 6.4; register numbers of "DWARF for the Arm 64-bit Architecture".
"""

from __future__ import annotations

import struct

REG_SP, REG_PC = 31, 32
X30 = 30
_OP_DEREF, _OP_CONST8U, _OP_AND, _OP_OR, _OP_PLUS, _OP_BREG = 0x06, 0x0E, 0x1A, 0x21, 0x22, 0x70
_CIE_ID = 0xFFFF_FFFF


def uleb(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        is_last = value == (-1 if byte & 0x40 else 0)
        out.append(byte | (0 if is_last else 0x80))
        if is_last:
            return bytes(out)


# Expressions


def address(value: int) -> bytes:
    """A constant address."""
    return bytes((_OP_CONST8U,)) + struct.pack("<Q", value)


def register_plus(register: int, offset: int) -> bytes:
    """A register plus a number of any size."""
    if -(1 << 31) <= offset < 1 << 31:
        return bytes((_OP_BREG + register,)) + sleb(offset)
    return bytes((_OP_BREG + register,)) + sleb(0) + address(offset) + bytes((_OP_PLUS,))


def register_low_bits(register: int, mask: int, base: int) -> bytes:
    """Some bits of a register plus a number."""
    return register_plus(register, 0) + address(mask) + bytes((_OP_AND,)) + address(base) + bytes((_OP_PLUS,))


def deref(expression: bytes) -> bytes:
    """The word at an address."""
    return expression + bytes((_OP_DEREF,))


# Rules


def cfa(register: int, offset: int) -> bytes:
    """The frame's address is a register plus an offset."""
    return b"\x0c" + uleb(register) + uleb(offset)


def cfa_expression(expression: bytes) -> bytes:
    """The frame's address is the value of an expression."""
    return b"\x0f" + uleb(len(expression)) + expression


def value(register: int, expression: bytes) -> bytes:
    """A register's value is that of an expression, which finds the frame's address on the stack."""
    return b"\x16" + uleb(register) + uleb(len(expression)) + expression


def saved_return_address(cfa_offset: int, el: int, va_bits: int) -> bytes:
    """x30 is in memory at an offset from the frame's address, signed: its PAC is taken off by the rule.

    Debuggers know one mask for all frames of a backtrace, but EL1 and EL2 have address spaces of different
    sizes, and an EL1 address
    is completed with ones.
    """
    place = b"\x11" + sleb(cfa_offset) + bytes((_OP_PLUS, _OP_DEREF))
    mask = (1 << va_bits) - 1
    strip = address(~mask & (1 << 64) - 1) + bytes((_OP_OR,)) if el == 1 else address(mask) + bytes((_OP_AND,))
    return value(X30, place + strip)


def saved_at(register: int, expression: bytes) -> bytes:
    """A register is in memory at the address that an expression gives."""
    return b"\x10" + uleb(register) + uleb(len(expression)) + expression


def saved(register: int, cfa_offset: int) -> bytes:
    """A register is in memory at an offset (negative multiple of 8) from the frame's address."""
    return b"\x11" + uleb(register) + sleb(cfa_offset // -8)


def in_register(register: int, other: int) -> bytes:
    """A register is in another one."""
    return b"\x09" + uleb(register) + uleb(other)


def unchanged(register: int) -> bytes:
    """A register is where it was."""
    return b"\x08" + uleb(register)


def undefined(register: int) -> bytes:
    """What a register was is not known."""
    return b"\x07" + uleb(register)


class FrameTable:
    """The contents of a ``.debug_frame`` section.

    Three common entries: a function returns to x30; a handler returns to where the PC register's rule says; an
    interruption does so too, and its caller was about to execute the instruction there ("S").
    """

    def __init__(self) -> None:
        self.data = bytearray()
        same = b"".join(unchanged(register) for register in range(31))
        # lldb takes "unchanged" for "unknown" where a return address is concerned; it takes this.
        self._function = self.common(1, -8, X30, cfa(REG_SP, 0) + same + in_register(X30, X30))
        self._handler = self.common(1, -8, REG_PC, cfa(REG_SP, 0) + same)
        self._interruption = self.common(1, -8, REG_PC, cfa(REG_SP, 0) + same, b"zS")

    def common(
        self, code_factor: int, data_factor: int, return_register: int, rules: bytes, augmentation: bytes = b""
    ) -> int:
        """Add a common entry; its offset, for :meth:`add_raw`."""
        at = len(self.data)
        # Version 4, 8-byte addresses, no segment.
        head = b"\x04" + augmentation + b"\x00\x08\x00" + uleb(code_factor) + sleb(data_factor) + uleb(return_register)
        # The size of what an augmentation adds: nothing.
        head += b"\x00" if augmentation else b""
        self._entry(_CIE_ID, head + rules)
        return at

    def add_raw(self, common: int, start: int, size: int, instructions: bytes) -> None:
        """Describe code by instructions that are encoded for a common entry."""
        self._entry(common, struct.pack("<QQ", start, size) + instructions)

    def add_interruption(self, start: int, size: int, rules: bytes) -> None:
        """Describe code that stands for an exception: its caller is what the exception interrupted."""
        self._entry(self._interruption, struct.pack("<QQ", start, size) + b"\x00" + rules)

    def add(self, start: int, size: int, rules: list[tuple[int, bytes]], is_handler: bool = False) -> None:
        """Describe ``size`` bytes of code at ``start``: ``(offset, rules from there on)``, ascending."""
        body = bytearray(struct.pack("<QQ", start, size))
        at = 0
        for offset, rule in rules:
            if offset > at:
                body += _advance(offset - at)
                at = offset
            body += rule
        self._entry(self._handler if is_handler else self._function, bytes(body))

    def _entry(self, identity: int, body: bytes) -> None:
        padded = struct.pack("<I", identity) + body
        padded += bytes(-(len(padded) + 4) % 8)
        self.data += struct.pack("<I", len(padded)) + padded


def _advance(distance: int) -> bytes:
    if distance < 0x40:
        return bytes((0x40 | distance,))
    return b"\x03" + struct.pack("<H", distance)
