"""One conversion's flags, width and precision, and how numbers and strings are laid out under them (lib/vsprintf.c).

Text inside the engine is latin-1: one character is one byte of the guest, so widths count bytes as the kernel does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pkvm_emu.kernel.vsprintf_env import MASK64, FormatEnv

LEFT = 1
PLUS = 2
SPACE = 4
SPECIAL = 8
ZEROPAD = 16
UPPER = 32

FIELD_WIDTH_MAX = (1 << 23) - 1
PRECISION_MAX = (1 << 15) - 1
STRING_LIMIT = 1 << 20
"""Bytes of a `%s` without precision; the kernel has no bound, an unterminated string must not stall the emulator."""

PAGE_SIZE = 4096
ERROR_POINTERS = (1 << 64) - 4095
"""ERR_PTR(-4095): addresses from here up carry an error number (include/linux/err.h)."""
ERROR_TEXT_BYTES = 16

DIGITS = {8: "o", 10: "d", 16: "x"}


class Spec(NamedTuple):
    """flags: the bits above; width, precision: -1 when not given."""

    flags: int = 0
    width: int = -1
    precision: int = -1


def number(value: int, spec: Spec, base: int = 10, *, signed: bool = False) -> str:
    """A number as the kernel lays it out, which is C's layout but for these: `#` keeps 0x before zero, `0` holds
    beside a precision (the zeros fill the whole width), the octal prefix is not counted into the precision, and
    `%.0d` of zero is 0.

    value: non-negative unless signed; base: 8, 10 or 16.
    """
    flags, width, precision = spec
    prefix = ""
    if signed:
        prefix = "-" if value < 0 else "+" if flags & PLUS else " " if flags & SPACE else ""
    digits = format(abs(value), DIGITS[base])
    if flags & SPECIAL:
        if base == 16:
            prefix += "0x"
        elif base == 8 and value:
            prefix += "0"
    if flags & UPPER:
        prefix = prefix.upper()
        digits = digits.upper()
    if len(digits) < precision:
        digits = digits.zfill(precision)
    padding = width - len(prefix) - len(digits)
    if padding <= 0:
        return prefix + digits
    if flags & LEFT:
        return prefix + digits + " " * padding
    if flags & ZEROPAD:
        return prefix + "0" * padding + digits
    return " " * padding + prefix + digits


def pad(text: str, spec: Spec) -> str:
    """Fill a string to the width, left or right; a string ignores the zero flag."""
    if len(text) >= spec.width:
        return text
    return text.ljust(spec.width) if spec.flags & LEFT else text.rjust(spec.width)


def string(text: str, spec: Spec) -> str:
    """Cut a string to the precision, then fill it to the width."""
    return pad(text if spec.precision < 0 else text[: spec.precision], spec)


def error_text(text: str, spec: Spec) -> str:
    """A message in place of a value, such as `(null)`: at most 16 characters unless a precision says otherwise."""
    return string(text, spec if spec.precision >= 0 else spec._replace(precision=ERROR_TEXT_BYTES))


def fixed_hex(value: int, size: int) -> str:
    """0x and all digits of a value of `size` bytes; the conversion's own flags and width do not apply."""
    return f"0x{value:0{2 * size}x}"


def raw_pointer(value: int, spec: Spec) -> str:
    """An address in hex: 16 digits, or what width and flags ask for."""
    if spec.width < 0:
        spec = spec._replace(width=16, flags=spec.flags | ZEROPAD)
    return number(value & MASK64, spec, 16)


def bad_pointer(va: int) -> str | None:
    """`(null)`, `(efault)` for the first page and error pointers, None for an address that may be read."""
    if PAGE_SIZE <= va < ERROR_POINTERS:
        return None
    return "(efault)" if va else "(null)"


def guest_string(va: int, spec: Spec, env: FormatEnv) -> str:
    """The NUL-terminated string at `va` under a `%s`."""
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    limit = STRING_LIMIT if spec.precision < 0 else spec.precision
    return pad(env.read_cstr(va, limit).decode("latin-1") if limit else "", spec)


def guest_bytes(text: str) -> str:
    """A name that the surroundings gave, as the engine's latin-1 text."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


PointerFormat = Callable[[int, str, Spec, FormatEnv], str]
"""(pointer, the letters and digits after %p, spec, env) -> text"""
EXTENSIONS: dict[str, PointerFormat] = {}
"""First character after %p -> its format."""


def extension(letters: str) -> Callable[[PointerFormat], PointerFormat]:
    """Register a format for `%p` followed by one of these letters, whatever the pointer."""

    def register(function: PointerFormat) -> PointerFormat:
        for letter in letters:
            EXTENSIONS[letter] = function
        return function

    return register


def dereferencing(letters: str) -> Callable[[PointerFormat], PointerFormat]:
    """Register a format that reads through its pointer: NULL and error pointers print as `(null)` and `(efault)`."""

    def register(function: PointerFormat) -> PointerFormat:
        def checked(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
            bad = bad_pointer(va)
            return function(va, letters, spec, env) if bad is None else error_text(bad, spec)

        extension(letters)(checked)
        return checked

    return register
