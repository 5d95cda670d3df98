"""Hex digits and dumps (``lib/hexdump.c``)."""

from __future__ import annotations

from errno import EINVAL

from pkvm_emu.kernel.guest_access import load, require_mapped, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.vsprintf_env import hash_pointer
from pkvm_emu.machine.calling import S32, U8, U64, Bool, CStr, Ptr

_PREFIX_ADDRESS, _PREFIX_OFFSET = 1, 2
_LINE_BUFFER = 32 * 3 + 2 + 32 + 1


@kernel_variable("hex_asc", 17, section="rodata")
def hex_asc(kernel: Kernel) -> bytes:
    """The digits."""
    return b"0123456789abcdef"


@kernel_variable("hex_asc_upper", 17, section="rodata")
def hex_asc_upper(kernel: Kernel) -> bytes:
    """The digits in upper case."""
    return b"0123456789ABCDEF"


@kernel_symbol("hex_to_bin")
def hex_to_bin(kernel: Kernel, ch: U8) -> int:
    """The value of a hex digit, or -1."""
    return b"0123456789abcdef".find(bytes((ch,)).lower())


@kernel_symbol("hex2bin", runs_guest=True)
def hex2bin(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """``count`` bytes from twice as many digits; -EINVAL for other characters (what came before is stored)."""
    for index in range(count):
        high, low = (hex_to_bin(kernel, byte) for byte in load(kernel, src + 2 * index, 2))
        if high < 0 or low < 0:
            return -EINVAL
        store(kernel, dest + index, bytes((high << 4 | low,)))
    return 0


@kernel_symbol("bin2hex", runs_guest=True)
def bin2hex(kernel: Kernel, dest: Ptr, src: Ptr, count: U64) -> int:
    """Digits of ``count`` bytes, without a NUL; where they end."""
    store(kernel, dest, load(kernel, src, count).hex().encode())
    return dest + 2 * count


def dump_line(data: bytes, row: int, group: int, ascii_column: bool) -> str:
    """One line of a hex dump.

    Args:
        data: its bytes; what is above a row is left out.
        row: 16 or 32 bytes; anything else is 16.
        group: 1, 2, 4 or 8 bytes printed as one little-endian number.
        ascii_column: print the characters behind.
    """
    row = row if row in (16, 32) else 16
    data = data[:row]
    if group not in (1, 2, 4, 8) or len(data) % group:
        group = 1
    pieces = [data[at : at + group][::-1].hex() for at in range(0, len(data), group)]
    text = " ".join(pieces)
    if ascii_column and data:
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
        text = text.ljust(row * 2 + row // group + 1) + shown
    return text


@kernel_symbol("hex_dump_to_buffer", runs_guest=True)
def hex_dump_to_buffer(
    kernel: Kernel, buf: Ptr, length: U64, row: S32, group: S32, line: Ptr, room: U64, ascii_column: Bool
) -> int:
    """One dump line into a buffer; the length that was wanted."""
    text = dump_line(load(kernel, buf, min(length, 32)), row, group, ascii_column)
    if room:
        store(kernel, line, text[: room - 1].encode("latin-1") + b"\0")
    return len(text)


@kernel_symbol("print_hex_dump", runs_guest=True)
def print_hex_dump(
    kernel: Kernel,
    level: CStr,
    prefix: CStr,
    kind: S32,
    row: S32,
    group: S32,
    buf: Ptr,
    length: U64,
    ascii_column: Bool,
) -> None:
    """A dump in the log, each line with the prefix and its (hashed) address or its offset."""
    row = row if row in (16, 32) else 16
    require_mapped(kernel, buf, length)
    for offset in range(0, length, row):
        data = load(kernel, buf + offset, min(row, length - offset))
        text = dump_line(data, row, group, ascii_column)[: _LINE_BUFFER - 1]
        where = ""
        if kind == _PREFIX_ADDRESS:
            where = f"{hash_pointer(buf + offset):016x}: "
        elif kind == _PREFIX_OFFSET:
            where = f"{offset:08x}: "
        kernel.log.printk(f"{level or ''}{prefix or ''}{where}{text}\n")
