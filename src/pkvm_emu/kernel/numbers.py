"""Text to numbers as ``lib/kstrtox.c`` reads them."""

from __future__ import annotations

from errno import EINVAL, ERANGE
from typing import NamedTuple

_DIGITS = {ord(c): value for value, c in enumerate("0123456789abcdefghijklmnopqrstuvwxyz")}
_DIGITS |= {ord(c): value for value, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10)}
_MAX = (1 << 64) - 1


class Parsed(NamedTuple):
    """A number and how many bytes of text it took."""

    value: int
    length: int


def _digit(data: bytes, index: int) -> int:
    return _DIGITS.get(data[index], 99) if index < len(data) else 99


def fix_radix(data: bytes, base: int) -> tuple[int, int]:
    """The base that the prefix asks for (0 means: decide) and the length of the prefix to skip."""
    has_prefix = data[:2].lower() == b"0x"
    if base == 0:
        if data[:1] != b"0":
            base = 10
        else:
            base = 16 if has_prefix and _digit(data, 2) < 16 else 8
    return base, 2 if base == 16 and has_prefix else 0


def digits(data: bytes, base: int) -> Parsed:
    """The digits that ``data`` begins with; the value is not cut to 64 bits."""
    value = length = 0
    while (digit := _digit(data, length)) < base:
        value = value * base + digit
        length += 1
    return Parsed(value, length)


def parse_unsigned(data: bytes, base: int) -> Parsed | int:
    """``kstrtoull`` without its sign: a whole number and at most one newline, or -EINVAL, -ERANGE."""
    base, skip = fix_radix(data, base)
    value, length = digits(data[skip:], base)
    if value > _MAX:
        return -ERANGE
    if not length or data[skip + length :] not in (b"", b"\n"):
        return -EINVAL
    return Parsed(value, skip + length)


def parse_integer(data: bytes, base: int, size: int, signed: bool) -> Parsed | int:
    """What ``kstrtoint``, ``kstrtou8``, ... make of a text.

    Args:
        data: the string without its NUL.
        base: 0 (decided by the prefix) or 2 to 36.
        size: bytes of the result's type.
        signed: whether the type is signed.

    Returns:
        The value (two's complement where negative), -EINVAL for text that is no number, -ERANGE for one that does not fit.
    """
    negative = signed and data[:1] == b"-"
    sign = 1 if negative or data[:1] == b"+" else 0
    parsed = parse_unsigned(data[sign:], base)
    if isinstance(parsed, int):
        return parsed
    value = -parsed.value if negative else parsed.value
    bits = 8 * size
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return Parsed(value, parsed.length + sign) if low <= value <= high else -ERANGE


def parse_bool(data: bytes, words: tuple[bytes, bytes] = (b"yYtT1", b"nNfF0")) -> bool | None:
    """``kstrtobool``: by the first letter, ``on``/``off`` by two; None for anything else.

    Args:
        data: the string.
        words: first letters for true and for false.
    """
    first = data[:1]
    if not first:
        return None
    if first in words[0]:
        return True
    if first in words[1]:
        return False
    if first in b"oO" and len(data) > 1:
        return {"n": True, "f": False}.get(chr(data[1]).lower())
    return None
