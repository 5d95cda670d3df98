"""The `%p` extensions that print bytes behind the pointer: dumps, bitmaps, addresses, UUIDs, time (lib/vsprintf.c)."""

from __future__ import annotations

import re
import struct

from pkvm_emu.kernel.vsprintf_env import FormatEnv
from pkvm_emu.kernel.vsprintf_spec import (
    Spec,
    bad_pointer,
    dereferencing,
    error_text,
    extension,
    fixed_hex,
    number,
    string,
)

HEX_DUMP_MAX = 64
_AF_INET = 2
_AF_INET6 = 10
_GUID_ORDER = (3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15)
_CHUNK_DIGITS = 8


@extension("h")
def hex_dump(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%*ph`, C colon, D dash, N nothing between the bytes: as many bytes as the width says (1 without, at most 64)."""
    if spec.width == 0:
        return ""
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    data = env.read(va, min(spec.width, HEX_DUMP_MAX) if spec.width > 0 else 1)
    separator = {"C": ":", "D": "-", "N": ""}.get(letters[1:2], " ")
    return separator.join(f"{byte:02x}" for byte in data)


@dereferencing("b")
def bitmap(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%*pb` hex in groups of 32 bits, `%*pbl` ranges; the width is the number of bits."""
    bits = max(spec.width, 0)
    data = env.read(va, (bits + 63) // 64 * 8) if bits else b""
    value = int.from_bytes(data, "little") & ((1 << bits) - 1)
    if letters[1:2] == "l":
        return _bit_ranges(value)
    if not bits:
        return ""
    digits = f"{value:0{(bits + 3) // 4}x}"
    first = len(digits) % _CHUNK_DIGITS or _CHUNK_DIGITS
    return ",".join(
        [digits[:first], *(digits[at : at + _CHUNK_DIGITS] for at in range(first, len(digits), _CHUNK_DIGITS))]
    )


def _bit_ranges(value: int) -> str:
    """Runs of ones in the reversed binary text, which stays linear for the widest bitmaps."""
    runs = (match.span() for match in re.finditer("1+", f"{value:b}"[::-1]))
    return ",".join(str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in runs)


@dereferencing("Mm")
def mac_address(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pM` colons, `%pMF` dashes, `%pm` neither, R reversed byte order."""
    data = env.read(va, 6)
    variant = letters[1:2]
    if variant == "R":
        data = data[::-1]
    separator = "" if letters[0] == "m" else "-" if variant == "F" else ":"
    return string(separator.join(f"{byte:02x}" for byte in data), spec)


@dereferencing("U")
def uuid(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pU[bBlL]`: b, l byte order (big by default), capitals for upper case."""
    data = env.read(va, 16)
    variant = letters[1:2]
    if variant in ("l", "L"):
        data = bytes(data[index] for index in _GUID_ORDER)
    digits = data.hex()
    text = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return string(text.upper() if variant in ("B", "L") else text, spec)


@dereferencing("N")
def netdev_features(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pNF`: the netdev_features_t at the pointer."""
    if letters[1:2] != "F":
        return error_text("(%pN?)", spec)
    return fixed_hex(int.from_bytes(env.read(va, 8), "little"), 8)


@extension("4")
def four_cc(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%p4cc`: a V4L2 or DRM code, bit 31 tells big endian. (The h, l, b, r variants came after 6.12.)"""
    if letters[1:3] != "cc":
        return error_text("(%p4?)", spec)
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    code = int.from_bytes(env.read(va, 4), "little")
    shown = (code & 0x7FFF_FFFF).to_bytes(4, "little")
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in shown)
    return string(f"{text} {'big' if code >> 31 else 'little'}-endian ({fixed_hex(code, 4)})", spec)


@dereferencing("Ii")
def ip_address(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%pI4[hnbl]`, `%pi4`, `%pI6[c]`, `%pi6`, `%pIS[pfsc]` (struct sockaddr; port, flow information, scope)."""
    kind = letters[1:2]
    if kind == "4":
        return string(_ipv4(env.read(va, 4), letters[0] == "i", letters[2:3]), spec)
    if kind == "6":
        return string(_ipv6(env.read(va, 16), letters[0], letters[2:3] == "c"), spec)
    if kind == "S":
        return _socket_address(va, letters, spec, env)
    return error_text(f"(%p{letters[0]}?)", spec)


def _ipv4(data: bytes, leading_zeros: bool, order: str) -> str:
    if order in ("h", "l"):
        data = data[::-1]
    return ".".join(f"{byte:03d}" if leading_zeros else str(byte) for byte in data)


def _ipv6(data: bytes, letter: str, compressed: bool) -> str:
    words = struct.unpack(">8H", data)
    if letter == "I" and compressed:
        return _ipv6_compressed(data, words)
    return (":" if letter == "I" else "").join(f"{word:04x}" for word in words)


def _ipv6_compressed(data: bytes, words: tuple[int, ...]) -> str:
    mapped = words[:6] == (0, 0, 0, 0, 0, 0xFFFF)
    isatap = words[4] | 0x0200 == 0x0200 and words[5] == 0x5EFE
    shown = [f"{word:x}" for word in (words[:6] if mapped or isatap else words)]
    best, length = 0, 1
    for start in range(len(shown)):
        end = start
        while end < len(shown) and shown[end] == "0":
            end += 1
        if end - start > length:
            best, length = start, end - start
    tail = [_ipv4(data[12:], False, "")] if mapped or isatap else []
    if length == 1:
        return ":".join(shown + tail)
    return ":".join(shown[:best]) + "::" + ":".join(shown[best + length :] + tail)


def _socket_address(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    options = letters[2:]
    family = int.from_bytes(env.read(va, 2), "little")
    if family == _AF_INET:
        port, address = struct.unpack("<2x2s4s", env.read(va, 8))
        order = next((letter for letter in reversed(options) if letter in "hlnb"), "")
        text = _ipv4(address, letters[0] == "i", order)
        return string(text + (":" + number(int.from_bytes(port, "big"), spec) if "p" in options else ""), spec)
    if family != _AF_INET6:
        return error_text("(einval)", spec)
    port, flow, address, scope = struct.unpack("<2x2s4s16sI", env.read(va, 28))
    text = _ipv6(address, letters[0], "c" in options)
    if any(option in options for option in "pfs"):
        text = f"[{text}]"
    if "p" in options:
        text += ":" + number(int.from_bytes(port, "big"), spec)
    if "f" in options:
        text += "/" + number(int.from_bytes(flow, "big") & 0x0FFF_FFFF, spec)
    if "s" in options:
        text += "%" + number(scope, spec)
    return string(text, spec)


@extension("t")
def time_and_date(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%ptT` a time64_t, `%ptR` a struct rtc_time; d date only, t time only, r fields as stored, s a space in place
    of the T.
    """
    if letters[1:2] == "T":
        fields = _broken_down(int.from_bytes(env.read(va, 8), "little", signed=True))
    elif letters[1:2] == "R":
        bad = bad_pointer(va)
        if bad is not None:
            return error_text(bad, spec)
        fields = struct.unpack("<6i", env.read(va, 24))
    else:
        return error_text("(%pt?)", spec)
    second, minute, hour, day, month, year = fields
    options = letters[2:]
    only = options[:1] if options[:1] in ("d", "t") else ""
    options = options[len(only) :]
    if "r" not in options:
        year, month = year + 1900, month + 1
    date = f"{_digits(year, 4)}-{_digits(month, 2)}-{_digits(day, 2)}"
    time = f"{_digits(hour, 2)}:{_digits(minute, 2)}:{_digits(second, 2)}"
    if only:
        return date if only == "d" else time
    return f"{date}{' ' if 's' in options else 'T'}{time}"


def _digits(value: int, width: int) -> str:
    return f"{value & (1 << 64) - 1:0{width}d}"


def _broken_down(seconds: int) -> tuple[int, int, int, int, int, int]:
    """Proleptic Gregorian time of day and date (month 0..11, year - 1900), for any count, which `datetime` does not
    take.
    """
    days, rest = divmod(seconds, 86400)
    hour, rest = divmod(rest, 3600)
    minute, second = divmod(rest, 60)
    era, day_of_era = divmod(days + 719468, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = (shifted_month + 2) % 12
    year = era * 400 + year_of_era + (month < 2)
    return second, minute, hour, day, month, year - 1900


_SPACE_ESCAPES = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0B: "\\v", 0x0C: "\\f"}
_SPECIAL_ESCAPES = {0x5C: "\\\\", 0x07: "\\a", 0x1B: "\\e", 0x22: '\\"'}
_NULL_ESCAPES = {0: "\\0"}
_ESCAPE_CLASSES = {"s": "s", "c": "c", "n": "n", "o": "o", "h": "h", "p": "p", "a": "scno"}


@extension("E")
def escaped(va: int, letters: str, spec: Spec, env: FormatEnv) -> str:
    """`%*pE[achnops]`: a buffer with the classes named by the letters escaped (string_escape_mem); `ap` without
    letters.
    """
    if spec.width == 0:
        return ""
    bad = bad_pointer(va)
    if bad is not None:
        return error_text(bad, spec)
    rules = ""
    for letter in letters[1:]:
        if letter not in _ESCAPE_CLASSES:
            break
        rules += _ESCAPE_CLASSES[letter]
    data = env.read(va, max(spec.width, 1))
    return "".join(_escape(byte, rules or "scnop") for byte in data)


def _escape(byte: int, rules: str) -> str:
    if "p" in rules and (0x20 <= byte < 0x7F or byte >= 0xA0):
        return chr(byte)
    for rule, table in (("s", _SPACE_ESCAPES), ("c", _SPECIAL_ESCAPES), ("n", _NULL_ESCAPES)):
        if rule in rules and byte in table:
            return table[byte]
    if "o" in rules:
        return f"\\{byte:03o}"
    return f"\\x{byte:02x}" if "h" in rules else chr(byte)
