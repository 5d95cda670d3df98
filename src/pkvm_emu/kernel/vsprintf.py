"""The kernel's printf engine: what vsnprintf of lib/vsprintf.c makes of a format and its arguments.

Behind printk, dev_*, snprintf, seq_printf and trace_seq_printf. A format is compiled once into segments (literal text
and functions) and kept. Guest memory, symbols and device nodes come through a FormatEnv, arguments through an
ArgSource, so nothing here knows a machine.

A conversion that reads an address that is not mapped raises GuestFault, as the kernel would oops; only NULL, the
first page and error pointers are caught by the engine itself and print `(null)` or `(efault)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel import vsprintf_values  # noqa: F401  its import registers formats
from pkvm_emu.kernel.varargs import ArgSource, VaListArgs
from pkvm_emu.kernel.vsprintf_env import DeviceNode, FormatEnv, GuestFault, hash_pointer
from pkvm_emu.kernel.vsprintf_levels import PrintkText, parse_printk_level
from pkvm_emu.kernel.vsprintf_pointer import hashed_pointer
from pkvm_emu.kernel.vsprintf_spec import (
    EXTENSIONS,
    FIELD_WIDTH_MAX,
    LEFT,
    PLUS,
    PRECISION_MAX,
    SPACE,
    SPECIAL,
    STRING_LIMIT,
    UPPER,
    ZEROPAD,
    Spec,
    bad_pointer,
    error_text,
    guest_bytes,
    guest_string,
    number,
    pad,
)

__all__ = [
    "DeviceNode",
    "FormatEnv",
    "GuestFault",
    "PrintkText",
    "format_bytes",
    "format_text",
    "hash_pointer",
    "parse_printk_level",
]

NESTING_DEPTH_MAX = 8
NESTED_FORMATS_MAX = 256
"""Of `%pV` in one call: a va_format that contains itself overflows the stack on a device, here it is an error."""

OUTPUT_MAX = 64 << 20
LONG_PIECE_BYTES = 4096
"""The kernel only counts what does not fit; here text is made, so a corrupt format must not take the host's memory."""

_FLAGS = {"-": LEFT, "+": PLUS, " ": SPACE, "#": SPECIAL, "0": ZEROPAD}
_BITS = {"hh": 8, "h": 16, "": 32, "l": 64, "ll": 64, "L": 64, "z": 64, "t": 64}
_BASES = {"d": 10, "i": 10, "u": 10, "x": 16, "X": 16, "o": 8}
# The kernel's isalnum() knows latin-1 letters, and it skips all of them after %p.
_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d*)(?:\.(?P<precision>\*|\d*))?(?P<size>hh?|ll?|L|z|t)?"
    r"(?:p(?P<extension>[0-9A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\xff]*)|(?P<letter>[^p]?))",
    re.ASCII | re.DOTALL,
)


class _Nesting:
    """How deep a `%pV` is inside others, and how many more may be expanded in this call."""

    __slots__ = ("depth", "left")

    def __init__(self) -> None:
        self.depth = 0
        self.left = NESTED_FORMATS_MAX


Convert = Callable[[ArgSource, FormatEnv, _Nesting | None], str]
MakeSpec = Callable[[ArgSource, FormatEnv], Spec]
Segment = str | Convert


def format_text(fmt: str | bytes, args: ArgSource, env: FormatEnv) -> str:
    """The whole text of a format and its arguments; the caller truncates.

    fmt: the format, up to its first NUL; args: the variadic arguments; env: memory and names. Returns text; bytes
    that are not UTF-8 print as \\xNN. Raises GuestFault for an unmapped address, ModuleError for `%pV` that contains
    itself.
    """
    text = _render(_compiled(fmt), args, env, None)
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "backslashreplace")


def format_bytes(fmt: str | bytes, args: ArgSource, env: FormatEnv) -> bytes:
    """As format_text, but the exact bytes that go into a guest buffer. Their count is what snprintf returns."""
    return _render(_compiled(fmt), args, env, None).encode("latin-1")


def _compiled(fmt: str | bytes) -> tuple[Segment, ...]:
    if isinstance(fmt, bytes):
        return compile_format(fmt.decode("latin-1"))
    return compile_format(guest_bytes(fmt))


def _render(segments: tuple[Segment, ...], args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
    pieces = []
    bulk = 0
    for part in segments:
        piece = part if isinstance(part, str) else part(args, env, nesting)
        if len(piece) > LONG_PIECE_BYTES:
            bulk += len(piece)
            if bulk > OUTPUT_MAX:
                raise ModuleError(f"format: its text passes {OUTPUT_MAX >> 20} MiB; check its widths and strings")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=2048)
def compile_format(fmt: str) -> tuple[Segment, ...]:
    """Split a latin-1 format into literal text and conversion functions. Nothing follows an unsupported conversion,
    as in the kernel.
    """
    fmt = fmt.partition("\0")[0]
    segments: list[Segment] = []
    position = 0
    for match in _CONVERSION.finditer(fmt):
        if match.start() > position:
            segments.append(fmt[position : match.start()])
        position = match.end()
        segment = _segment(match)
        if segment is None:
            segments.append(_unsupported(match["letter"]))
            return tuple(segments)
        segments.append(segment)
    if position < len(fmt):
        segments.append(fmt[position:])
    return tuple(segments)


def _segment(match: re.Match[str]) -> Segment | None:
    letter = match["letter"]
    if letter == "%":
        return "%"
    make_spec, plain = _spec(match, UPPER if letter == "X" else 0)
    if letter is None:
        return _reading(match.group(), _pointer(match["extension"], make_spec))
    if letter == "s":
        return _reading(match.group(), _plain_string if plain else _string(make_spec))
    if letter == "c":
        return _character(make_spec)
    base = _BASES.get(letter)
    if base is None:
        return None
    bits = _BITS[match["size"] or ""]
    signed = letter in "di"
    return _plain_decimal(bits, signed) if plain and base == 10 else _number(make_spec, base, bits, signed)


def _unsupported(letter: str) -> Convert:
    def convert(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        env.warn(f"Please remove unsupported %{letter} in format string\n")
        return ""

    return convert


def _spec(match: re.Match[str], more_flags: int) -> tuple[MakeSpec, bool]:
    """A function that gives the spec (it takes the arguments of `*`), and whether there is nothing in it at all."""
    flags = more_flags
    for character in match["flags"]:
        flags |= _FLAGS[character]
    width, precision = match["width"], match["precision"]
    fixed = Spec(
        flags,
        _count(width, FIELD_WIDTH_MAX),
        _count(precision or "", PRECISION_MAX),
    )
    if width == "*" or precision == "*":
        return _starred(fixed, width == "*", precision == "*"), False
    return lambda args, env: fixed, fixed == Spec()


def _count(digits: str, maximum: int) -> int:
    """A width or precision, -1 for none; eight digits are past either maximum, and int() refuses very long texts."""
    return min(int(digits.lstrip("0")[:8] or 0), maximum) if digits.isdecimal() else -1


def _starred(fixed: Spec, star_width: bool, star_precision: bool) -> MakeSpec:
    def make(args: ArgSource, env: FormatEnv) -> Spec:
        flags, width, precision = fixed
        if star_width:
            asked = _signed(args.next_u64(), 32)
            width = max(-FIELD_WIDTH_MAX, min(asked, FIELD_WIDTH_MAX))
            if width != asked:
                env.warn(f"field width {asked} too large")
            if width < 0:
                width, flags = -width, flags | LEFT
        if star_precision:
            asked = _signed(args.next_u64(), 32)
            precision = max(0, min(asked, PRECISION_MAX))
            if asked > PRECISION_MAX:
                env.warn(f"precision {asked} too large")
        return Spec(flags, width, precision)

    return make


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _plain_decimal(bits: int, signed: bool) -> Convert:
    mask = (1 << bits) - 1
    negative = 1 << (bits - 1) if signed else 1 << bits

    def convert(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        value = args.next_u64() & mask
        return str(value if value < negative else value - mask - 1)

    return convert


def _number(make_spec: MakeSpec, base: int, bits: int, signed: bool) -> Convert:
    mask = (1 << bits) - 1

    def convert(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        spec = make_spec(args, env)
        value = args.next_u64()
        return number(_signed(value, bits) if signed else value & mask, spec, base, signed=signed)

    return convert


def _character(make_spec: MakeSpec) -> Convert:
    def convert(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        spec = make_spec(args, env)
        return pad(chr(args.next_u64() & 0xFF), spec)

    return convert


def _plain_string(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
    va = args.next_u64()
    return bad_pointer(va) or env.read_cstr(va, STRING_LIMIT).decode("latin-1")


def _string(make_spec: MakeSpec) -> Convert:
    def convert(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        spec = make_spec(args, env)
        return guest_string(args.next_u64(), spec, env)

    return convert


def _pointer(letters: str, make_spec: MakeSpec) -> Convert:
    kind = letters[:1]
    show = EXTENSIONS.get(kind, hashed_pointer)

    def convert(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        spec = make_spec(args, env)
        va = args.next_u64()
        if kind == "V":
            return _nested(va, spec, env, nesting)
        return show(va, letters, spec, env)

    return convert


def _nested(va: int, spec: Spec, env: FormatEnv, nesting: _Nesting | None) -> str:
    """`%pV`: a struct va_format {const char *fmt; va_list *va}, expanded in place on a copy of the va_list."""
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    nesting = nesting or _Nesting()
    nesting.left -= 1
    if nesting.left < 0 or nesting.depth >= NESTING_DEPTH_MAX:
        raise ModuleError(
            f"%pV: struct va_format at {va:#x} expands without end; check that it does not contain itself"
        )

    def read_u64(address: int) -> int:
        return int.from_bytes(env.read(address, 8), "little")

    def read_u32(address: int) -> int:
        return int.from_bytes(env.read(address, 4), "little")

    segments = compile_format(env.read_cstr(read_u64(va), STRING_LIMIT).decode("latin-1"))
    args = VaListArgs(read_u64, read_u32, read_u64(va + 8))
    nesting.depth += 1
    text = _render(segments, args, env, nesting)
    nesting.depth -= 1
    return text


def _reading(conversion: str, convert: Convert) -> Convert:
    """Put the conversion's own text into a fault that it meets."""

    def guarded(args: ArgSource, env: FormatEnv, nesting: _Nesting | None) -> str:
        try:
            return convert(args, env, nesting)
        except GuestFault as fault:
            fault.conversion = fault.conversion or conversion
            raise

    return guarded
