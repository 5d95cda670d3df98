"""A module's halves as linked ELF files: symbols and debug sections at the addresses where the code runs.

A ``.ko`` is relocatable, and its EL2 half runs at other addresses than its EL1 half. Each half becomes a file of its own; what
the debug sections say about the other half is set to address 0, which debuggers take for discarded code.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING

from pkvm_emu.debug.elfimage import ImageSection, ImageSymbol, code_section, write_elf
from pkvm_emu.debug.module_frames import ModuleFrames
from pkvm_emu.elf.elements import (
    MASK64,
    NVHE_PREFIX,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_NOBITS,
    SHT_PROGBITS,
    SHT_RELA,
    SHT_SYMTAB,
    STT_FILE,
    STT_FUNC,
    STT_SECTION,
    is_mapping_symbol,
)
from pkvm_emu.elf.relocation import APPLIERS, RELOCATION_TYPES
from pkvm_emu.errors import InputError

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import DebugPart
    from pkvm_emu.kernel.modules import LoadedModule

_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")
_COMPRESSED = 0x800
_ZLIB = 1
_LARGEST_DEBUG_SECTION = 256 << 20
#: Merge and string flags say nothing once a section is linked.
_NO_FLAGS = 0


def module_elf(module: LoadedModule, el: int, delta: int, va_bits: int) -> bytes | None:
    """The file of one half of a module; None where it has no code there.

    Args:
        module: placed in memory.
        el: 1 or 2.
        delta: EL2 address minus EL1 address of its EL2 half.
        va_bits: bits of an address at that level; those above may hold a PAC.
    """
    places = _places(module, el, delta)
    if not places:
        return None
    sections: list[ImageSection] = []
    file = module.file
    for index, va in places.items():
        section = file.sections[index]
        kernel_va = va - delta if el == 2 else va
        data = b"" if section.is_nobits else module.image.read(kernel_va, section.size)
        kind = SHT_NOBITS if section.is_nobits else SHT_PROGBITS
        sections.append(ImageSection(section.name, data, va, section.size, section.flags & 7, kind, section.align))
    symbols = _symbols(module, el, places)
    for area in module.layout.veneers if el == 1 else ():
        # Branch islands lie behind the last section of their region.
        sections.append(code_section(f".veneers.{area.region}", area.va, module.image.read(area.va, area.size)))
        symbols.append(ImageSymbol(f"veneers.{area.region}", area.va, area.size))
    frames = ModuleFrames(el, va_bits)
    for image in sections:
        if image.name.endswith(".eh_frame") and image.data:
            frames.add_section(image.data, image.address)
    debug = [found for part in file.debug_parts for found in _debug_sections(part, places)]
    for image in debug:
        if image.name == ".debug_frame":
            frames.add_section(image.data, None)
    sections = [image for image in sections if not image.name.endswith(".eh_frame")]
    _add_functions(frames, symbols, sections)
    data = bytes(frames.table.data)
    debug = [image for image in debug if image.name != ".debug_frame"]
    debug.append(ImageSection(".debug_frame", data, size=len(data), align=8))
    return write_elf([*sections, *debug], symbols)


def _add_functions(frames: ModuleFrames, symbols: list[ImageSymbol], sections: list[ImageSection]) -> None:
    """Rules for the functions that have none."""
    for section in sections:
        if not section.flags & SHF_EXECINSTR or not section.data:
            continue
        end = section.address + section.size
        inside = [s for s in symbols if s.type == STT_FUNC and section.address <= s.value < end]
        starts = sorted({symbol.value for symbol in inside})
        for start, following in pairwise([*starts, end]):
            if not frames.covers(start):
                frames.add_function(start, section.data[start - section.address : following - section.address])


def _places(module: LoadedModule, el: int, delta: int) -> dict[int, int]:
    """VA at ``el`` of each section that runs or lies there."""
    hyp = {section.index for section in module.file.hyp_mapped_sections}
    sections = module.file.sections
    if el == 1:
        return {i: va for i, va in module.layout.placements.items() if i not in hyp and sections[i].size}
    return {i: va + delta for i, va in module.layout.placements.items() if i in hyp and sections[i].size}


def _symbols(module: LoadedModule, el: int, places: dict[int, int]) -> list[ImageSymbol]:
    found = []
    for symbol in module.file.symbols:
        base = places.get(symbol.shndx)
        if base is None or not symbol.name or symbol.type in (STT_SECTION, STT_FILE):
            continue
        name, value = symbol.name, (base + symbol.value) & MASK64
        short = name.removeprefix(NVHE_PREFIX)
        if is_mapping_symbol(name):
            name = short
        elif el == 2 and short != name:
            # Its name in the source; the kernel's name for it stays too.
            found.append(ImageSymbol(short, value, symbol.size, symbol.type, symbol.bind))
        found.append(ImageSymbol(name, value, symbol.size, symbol.type, symbol.bind))
    return found


def _debug_sections(part: DebugPart, places: dict[int, int]) -> list[ImageSection]:
    """The debug sections of an image, with their relocations applied for sections at ``places``."""
    data = part.data
    offset, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    headers = [_HEADER.unpack_from(data, offset + i * _HEADER.size) for i in range(count)]
    strings = headers[struct.unpack_from("<H", data, 62)[0]]
    names = data[strings[4] : strings[4] + strings[5]]
    tables = [header for header in headers if header[1] == SHT_SYMTAB]
    relocations = {header[7]: header for header in headers if header[1] == SHT_RELA}
    sections = []
    for index, header in enumerate(headers):
        name = names[header[0] : names.find(b"\0", header[0])].decode("ascii", "replace")
        if header[2] & SHF_ALLOC or header[1] != SHT_PROGBITS or not name.startswith(".debug_"):
            continue
        contents = _contents(data, header)
        if contents is None:
            continue
        if index in relocations and tables:
            _relocate(data, contents, relocations[index], tables[0], headers, part, places)
        sections.append(ImageSection(name, bytes(contents), 0, len(contents), _NO_FLAGS, align=max(header[8], 1)))
    return sections


def _contents(data: bytes, header: tuple[int, ...]) -> bytearray | None:
    raw = data[header[4] : header[4] + header[5]]
    if not header[2] & _COMPRESSED:
        return bytearray(raw)
    kind, _, size, _ = struct.unpack_from("<IIQQ", raw)
    if kind != _ZLIB or size > _LARGEST_DEBUG_SECTION:
        return None
    try:
        return bytearray(zlib.decompressobj().decompress(raw[24:], size))
    except zlib.error as error:
        raise InputError(f"a compressed debug section cannot be read: {error}") from None


def _relocate(
    data: bytes,
    contents: bytearray,
    relocations: tuple[int, ...],
    table: tuple[int, ...],
    headers: list[tuple[int, ...]],
    part: DebugPart,
    places: dict[int, int],
) -> None:
    symbol_count = table[5] // _SYMBOL.size
    values: dict[int, int | None] = {}

    def value_of(number: int) -> int | None:
        """The value of a symbol; None where what it names is not in this half."""
        if number not in values:
            _, _, _, shndx, value, _ = _SYMBOL.unpack_from(data, table[4] + number * _SYMBOL.size)
            values[number] = None
            if 0 < shndx < len(headers):
                home = part.sections.get(shndx)
                if not headers[shndx][2] & SHF_ALLOC:
                    values[number] = value
                elif home is not None and home[0] in places:
                    values[number] = places[home[0]] + home[1] + value
        return values[number]

    start, size = relocations[4], relocations[5]
    for at in range(start, start + size - _RELA.size + 1, _RELA.size):
        offset, kind, number, addend = _RELA.unpack_from(data, at)
        row = RELOCATION_TYPES.get(kind)
        if row is None or not row.size or number >= symbol_count or offset + row.size > len(contents):
            continue
        value = value_of(number)
        if value is None:
            contents[offset : offset + row.size] = bytes(row.size)
        else:
            APPLIERS[kind](contents, offset, offset, (value + addend) & MASK64)
