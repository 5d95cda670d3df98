"""The kernel's ``vsscanf``: what a format makes of a text, as the bytes to store one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable

from pkvm_emu.kernel.numbers import digits, fix_radix

_SPACE = b"\t\n\v\f\r \xa0"
_CONVERSION = re.compile(rb"%(\*?)(\d*)(hh|h|ll|l|L|z)?(\[\^?\]?[^\]]*\]|.)", re.DOTALL)
_SIZES = {b"hh": 1, b"h": 2, b"": 4, b"l": 8, b"ll": 8, b"L": 8, b"z": 8}
_BASES = {b"d": 10, b"u": 10, b"i": 0, b"x": 16, b"X": 16, b"o": 8}
_INT_MAX = (1 << 31) - 1


def scan(text: bytes, fmt: bytes) -> tuple[int, list[bytes]]:
    """Read ``text`` by ``fmt``.

    Args:
        text: the input.
        fmt: conversions d i u x X o s c n [set] with ``*``, a width and h, hh, l, ll, z.

    Returns:
        The number of items, and the bytes for each argument in order (``%n`` included).
    """
    scanner = _Scanner(text)
    position = 0
    while position < len(fmt):
        byte = fmt[position]
        if byte in _SPACE:
            scanner.skip_spaces()
            position += 1
            continue
        found = _CONVERSION.match(fmt, position) if byte == ord("%") else None
        if found is None or found[4] == b"%":
            position += 1 if found is None else len(found[0])
            if not scanner.literal(byte):
                break
            continue
        position = found.end()
        if not scanner.convert(found[1] == b"*", int(found[2] or -1), found[3] or b"", found[4]):
            break
    return scanner.count, scanner.stores


class _Scanner:
    """Where a scan is in its text, and what it has found."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0
        self.count = 0
        self.stores: list[bytes] = []

    def skip_spaces(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _SPACE:
            self._at += 1

    def literal(self, byte: int) -> bool:
        if self._text[self._at : self._at + 1] != bytes((byte,)):
            return False
        self._at += 1
        return True

    def convert(self, suppressed: bool, width: int, size: bytes, letter: bytes) -> bool:
        """One conversion; False ends the scan. A width of 0 does too."""
        if letter == b"n":
            self.stores.append(self._at.to_bytes(4, "little"))
            return True
        if width == 0 or self._at >= len(self._text):
            return False
        if letter in _BASES:
            data = self._number(width, size, letter)
        elif letter == b"c":
            data = self._take(1 if width < 0 else width)
        elif letter == b"s":
            self.skip_spaces()
            data = self._span(width, lambda byte: byte not in _SPACE)
        elif letter[:1] == b"[":
            inverted = letter[1:2] == b"^"
            wanted = letter[2 if inverted else 1 : -1]
            data = self._span(width, lambda byte: (byte in wanted) != inverted)
            if data == b"\0":
                return False
        else:
            return False
        if data is None:
            return False
        if not suppressed:
            self.stores.append(data)
            self.count += 1
        return True

    def _take(self, length: int) -> bytes:
        data = self._text[self._at : self._at + length]
        self._at += len(data)
        return data

    def _span(self, width: int, accepts: Callable[[int], bool]) -> bytes:
        end = self._at
        limit = _INT_MAX if width < 0 else width
        while end < len(self._text) and end - self._at < limit and accepts(self._text[end]):
            end += 1
        return self._take(end - self._at) + b"\0"

    def _number(self, width: int, size: bytes, letter: bytes) -> bytes | None:
        self.skip_spaces()
        field = self._text[self._at :] if width < 0 else self._text[self._at : self._at + width]
        negative = letter in b"di" and field[:1] == b"-"
        base, skip = fix_radix(field[negative:], _BASES[letter])
        value, length = digits(field[negative + skip :], base)
        if not length and not skip:
            return None
        self._at += negative + skip + length
        bits = 8 * _SIZES[size]
        return ((-value if negative else value) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")
