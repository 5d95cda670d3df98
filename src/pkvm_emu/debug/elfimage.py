"""Writing a linked ELF file for debuggers: sections at addresses, symbols, one segment over all that takes memory.

A debugger reads names, lines and unwind rules from it; the memory itself it reads from the target.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pkvm_emu.elf.elements import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHN_ABS,
    SHT_NOBITS,
    SHT_PROGBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    align_up,
)

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_ET_EXEC, _EM_AARCH64 = 2, 183
_PT_LOAD, _PF_RX = 1, 5
#: Where in the file the lowest address of what is loaded lies.
_LOADED_OFFSET = 4096


@dataclass(frozen=True, slots=True)
class ImageSection:
    """One section.

    Attributes:
        name: its name.
        data: its bytes; empty for one without contents in the file.
        address: its VA; 0 for one that takes no memory.
        size: bytes in memory.
        flags: ``SHF_*``.
        type: ``SHT_*``.
        align, entsize: in bytes.
    """

    name: str
    data: bytes
    address: int = 0
    size: int = 0
    flags: int = 0
    type: int = SHT_PROGBITS
    align: int = 1
    entsize: int = 0


@dataclass(frozen=True, slots=True)
class ImageSymbol:
    """One symbol: ``value`` is a VA; it belongs to the section that holds the VA."""

    name: str
    value: int
    size: int = 0
    type: int = STT_FUNC
    bind: int = STB_GLOBAL


def code_section(name: str, address: int, data: bytes) -> ImageSection:
    """A section of instructions."""
    return ImageSection(name, data, address, len(data), SHF_ALLOC | SHF_EXECINSTR, align=4)


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.data)
            self.data += text.encode("utf-8", "replace") + b"\0"
        return self._known[text]


def write_elf(sections: list[ImageSection], symbols: list[ImageSymbol]) -> bytes:
    """The bytes of an executable ELF file with these sections: those that are loaded by ascending address, then the others."""
    sections = sorted(sections, key=lambda section: section.address if section.flags & SHF_ALLOC else 1 << 64)
    names, strings = _Strings(), _Strings()
    ordered = sorted(symbols, key=lambda symbol: symbol.bind != STB_LOCAL)
    table = bytearray(_SYMBOL.pack(0, 0, 0, 0, 0, 0))
    for symbol in ordered:
        home = _home(sections, symbol.value)
        info = symbol.bind << 4 | symbol.type
        table += _SYMBOL.pack(strings.add(symbol.name), info, 0, home, symbol.value, symbol.size)
    local = 1 + sum(symbol.bind == STB_LOCAL for symbol in ordered)
    count = len(sections)
    tables = [
        ImageSection(".symtab", bytes(table), size=len(table), type=SHT_SYMTAB, align=8, entsize=_SYMBOL.size),
        ImageSection(".strtab", bytes(strings.data), size=len(strings.data), type=SHT_STRTAB),
    ]
    for section in [*sections, *tables]:
        names.add(section.name)
    names.add(".shstrtab")
    tables.append(ImageSection(".shstrtab", bytes(names.data), size=len(names.data), type=SHT_STRTAB))
    loaded = [section for section in sections if section.flags & SHF_ALLOC and section.size]
    low = min((section.address for section in loaded), default=0)
    high = max((section.address + section.size for section in loaded), default=0)
    body = bytearray(_LOADED_OFFSET)
    headers = bytearray(_SECTION.size)
    filled = 0
    # What is loaded comes first and lies in the file as it does in memory: that is how tools know its segment.
    for section in [*sections, *tables]:
        offset = align_up(len(body), section.align)
        if section.flags & SHF_ALLOC:
            offset = _LOADED_OFFSET + section.address - low
        if section.type != SHT_NOBITS:
            body += bytes(max(offset + len(section.data) - len(body), 0))
            body[offset : offset + len(section.data)] = section.data
            filled = max(filled, offset + section.size) if section.flags & SHF_ALLOC else filled
        link, info = (count + 2, local) if section.type == SHT_SYMTAB else (0, 0)
        headers += _SECTION.pack(
            names.add(section.name), section.type, section.flags, section.address, offset, section.size,
            link, info, section.align, section.entsize,
        )  # fmt: skip
    body += bytes(align_up(len(body), 8) - len(body))
    # No entry point: debuggers end backtraces at the function that holds it.
    _HEADER.pack_into(
        body, 0, _IDENT, _ET_EXEC, _EM_AARCH64, 1, 0, _HEADER.size, len(body), 0,
        _HEADER.size, _SEGMENT.size, 1, _SECTION.size, count + 4, count + 3,
    )  # fmt: skip
    size = max(filled - _LOADED_OFFSET, 0)
    _SEGMENT.pack_into(body, _HEADER.size, _PT_LOAD, _PF_RX, _LOADED_OFFSET, low, low, size, high - low, _LOADED_OFFSET)
    return bytes(body + headers)


def _home(sections: list[ImageSection], value: int) -> int:
    for index, section in enumerate(sections, 1):
        if section.flags & SHF_ALLOC and section.address <= value < section.address + max(section.size, 1):
            return index
    return SHN_ABS
