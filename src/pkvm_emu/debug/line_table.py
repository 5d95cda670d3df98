"""Writing DWARF line tables: which line of which file an instruction of assembled code comes from.

A unit is one assembled image: ``.debug_line`` holds its rows, ``.debug_info`` and ``.debug_abbrev`` the few facts
without which debuggers do not look there, and its functions. Breakpoints on these are to be at their first instruction, so their
first rows say that the prologue has ended.
Source: DWARF 4, sections 3.3.1, 6.2 and 7.21.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pkvm_emu.debug.cfi import sleb, uleb
from pkvm_emu.debug.elfimage import ImageSection

_VERSION = 4
_TAG_COMPILE_UNIT, _TAG_SUBPROGRAM = 0x11, 0x2E
_NAME, _STATEMENTS, _LOW_PC, _HIGH_PC, _LANGUAGE, _DIRECTORY, _PRODUCER = 0x03, 0x10, 0x11, 0x12, 0x13, 0x1B, 0x25
_STRING, _OFFSET, _ADDRESS, _DATA8, _DATA2 = 0x08, 0x17, 0x01, 0x07, 0x05
#: C99: lldb reads no functions of units in a language that it has no plug-in for, as assembler is.
_LANGUAGE_NUMBER = 0x0C
_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE, _PROLOGUE_END = 1, 2, 3, 4, 10
_END_SEQUENCE, _SET_ADDRESS = b"\x00\x01\x01", b"\x00\x09\x02"
#: Operands of the standard instructions 1 to 12.
_OPERANDS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))
_UNIT_ATTRIBUTES = (
    (_PRODUCER, _STRING), (_LANGUAGE, _DATA2), (_NAME, _STRING), (_DIRECTORY, _STRING), (_LOW_PC, _ADDRESS), (_HIGH_PC, _DATA8),
    (_STATEMENTS, _OFFSET),
)  # fmt: skip
_FUNCTION_ATTRIBUTES = ((_NAME, _STRING), (_LOW_PC, _ADDRESS), (_HIGH_PC, _DATA8))
_UNIT, _FUNCTION = b"\x01", b"\x02"


class Row(NamedTuple):
    """One instruction: its VA, its file (relative to the unit's directory) and its line."""

    address: int
    file: str
    line: int


class Function(NamedTuple):
    """One function: its name, its VA and its size in bytes."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class LineUnit:
    """One assembled image.

    Attributes:
        name: its source file, relative to ``directory``.
        directory: what its files are relative to.
        rows: by ascending address; an instruction without row has no line.
        functions: those among them that have rows.
    """

    name: str
    directory: str
    rows: Sequence[Row]
    functions: Sequence[Function] = ()


def line_sections(units: Iterable[LineUnit]) -> list[ImageSection]:
    """``.debug_line``, ``.debug_info`` and ``.debug_abbrev`` of the units that have rows."""
    lines, info = bytearray(), bytearray()
    for unit in units:
        if unit.rows:
            info += _entry(unit, len(lines))
            lines += _program(unit)
    if not info:
        return []
    named = ((".debug_line", bytes(lines)), (".debug_info", bytes(info)), (".debug_abbrev", _abbreviations()))
    return [ImageSection(name, data, size=len(data)) for name, data in named]


def _abbreviations() -> bytes:
    def one(code: bytes, tag: int, children: int, attributes: Sequence[tuple[int, int]]) -> bytes:
        body = b"".join(uleb(attribute) + uleb(form) for attribute, form in attributes)
        return code + uleb(tag) + bytes((children,)) + body + b"\x00\x00"

    unit = one(_UNIT, _TAG_COMPILE_UNIT, 1, _UNIT_ATTRIBUTES)
    return unit + one(_FUNCTION, _TAG_SUBPROGRAM, 0, _FUNCTION_ATTRIBUTES) + b"\x00"


def _entry(unit: LineUnit, lines_at: int) -> bytes:
    low = unit.rows[0].address
    body = struct.pack("<HIB", _VERSION, 0, 8) + _UNIT + _text("pkvm_emu") + struct.pack("<H", _LANGUAGE_NUMBER)
    body += _text(unit.name) + _text(unit.directory)
    body += struct.pack("<QQI", low, unit.rows[-1].address + 4 - low, lines_at)
    for function in unit.functions:
        body += _FUNCTION + _text(function.name) + struct.pack("<QQ", function.address, function.size)
    body += b"\x00"
    return struct.pack("<I", len(body)) + body


def _program(unit: LineUnit) -> bytes:
    files = list(dict.fromkeys([unit.name, *(row.file for row in unit.rows)]))
    # Instructions of 4 bytes, one operation each, is_stmt, no special opcodes: the lengths of the standard ones follow.
    head = struct.pack("<BBBbBB", 4, 1, 1, 0, 1, len(_OPERANDS) + 1) + _OPERANDS
    # No directories: the names are relative to that of the unit, without times and sizes.
    head += b"\x00" + b"".join(_text(file) + b"\x00\x00\x00" for file in files) + b"\x00"
    body = struct.pack("<HI", _VERSION, len(head)) + head + b"".join(_sequences(unit, files))
    return struct.pack("<I", len(body)) + body


def _sequences(unit: LineUnit, files: list[str]) -> Iterable[bytes]:
    """A sequence for each stretch without holes."""
    starts = {function.address for function in unit.functions}
    file, line = 1, 1
    previous: Row | None = None
    for row in unit.rows:
        if previous is not None:
            yield bytes((_ADVANCE_PC, 1))
            if row.address != previous.address + 4:
                yield _END_SEQUENCE
                previous = None
        if previous is None:
            yield _SET_ADDRESS + struct.pack("<Q", row.address)
            file, line = 1, 1
        is_start = row.address in starts
        if previous is None or row[1:] != previous[1:] or is_start:
            number = files.index(row.file) + 1
            if number != file:
                yield bytes((_SET_FILE,)) + uleb(number)
            if is_start:
                yield bytes((_PROLOGUE_END,))
            yield bytes((_ADVANCE_LINE,)) + sleb(row.line - line) + bytes((_COPY,))
            file, line = number, row.line
        previous = row
    yield bytes((_ADVANCE_PC, 1)) + _END_SEQUENCE


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"
