"""Reading one ET_REL AArch64 object from bytes, and refusing everything else with one line.

Headers and tables are read in bulk with ``struct``: a module of 150 KB must load in a few milliseconds, and the command
line must not pay for importing an ELF library. DWARF, where a library is worth its import time, lives in ``dwarf``.
Every offset, size and index is checked here, so that later stages may index without fear.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from pkvm_emu.elf.elements import (
    MEMORY_LIMIT,
    SHF_ALLOC,
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHT_NOBITS,
    SHT_REL,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    STT_SECTION,
    Relocation,
    RelocationSection,
    Section,
    Symbol,
    printable,
)
from pkvm_emu.elf.symbols import SymbolTable
from pkvm_emu.errors import InputError

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")

_EM_AARCH64 = 183
_ET_REL = 1
_NAME_LIMIT = 4096
_NAMES_LIMIT = 32 << 20
_ALIGN_LIMIT = 1 << 21

_MACHINES = {
    2: "SPARC", 3: "i386", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "s390", 40: "Arm (32-bit)",
    62: "x86-64", 243: "RISC-V", 247: "BPF", 258: "LoongArch",
}  # fmt: skip
_FILE_TYPES = {0: "no type", 2: "an executable (ET_EXEC)", 3: "a shared object (ET_DYN)", 4: "a core dump (ET_CORE)"}
_OTHER_FORMATS = (
    (b"\x1f\x8b", "it is gzip-compressed: decompress it first"),
    (b"\xfd7zXZ\0", "it is xz-compressed: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "it is zstd-compressed: decompress it first"),
    (b"!<arch>\n", "it is an ar archive: link its members with 'ld -r' first"),
    (b"BC\xc0\xde", "it is LLVM bitcode: build it without LTO or use the linked module"),
    (b"MZ", "it is a PE image"),
)


class _Header(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int


class ObjectFile:
    """Sections, symbols and relocations of one relocatable object.

    ``sections`` is indexed by section number (entry 0 is the null section) and ``symbols`` by symbol number.
    ``relocation_sections`` holds those whose target takes memory; relocations of debug sections are left to ``dwarf``.
    """

    def __init__(
        self,
        name: str,
        sections: Sequence[Section],
        symbols: Sequence[Symbol],
        relocation_sections: Sequence[RelocationSection],
    ) -> None:
        self.name = name
        self.sections = list(sections)
        self.symbols = list(symbols)
        self.relocation_sections = list(relocation_sections)

    @classmethod
    def parse(cls, data: bytes, name: str) -> ObjectFile:
        """Read an object from ``data``; ``name`` is what error messages call it.

        Raises:
            InputError: the bytes are not a sound 64-bit little-endian AArch64 relocatable object.
        """
        return _Reader(data, name).read()

    def section(self, name: str) -> Section | None:
        """Return the first section called ``name``, or None."""
        return self._sections_by_name.get(name)

    def relocations_of(self, target: int) -> list[Relocation]:
        """Return the relocations that apply to section number ``target``, in file order."""
        return [entry for part in self.relocation_sections if part.target == target for entry in part.entries]

    def symbol_offset(self, symbol: Symbol, addend: int = 0) -> tuple[int, int] | None:
        """Return (section number, byte offset) that ``symbol`` + ``addend`` names, or None outside of sections."""
        return (symbol.shndx, symbol.value + addend) if symbol.in_section else None

    def describe(self, section: int, offset: int) -> str:
        """Name a place for people: ``.text+0x14 (init_module+0x10)``."""
        place = f"{self.sections[section].name}+{offset:#x}"
        found = self.symbol_table.find(section, offset)
        return f"{place} ({found.symbol.name}+{found.offset:#x})" if found else place

    @cached_property
    def symbol_table(self) -> SymbolTable:
        """The index of defined symbols by section and offset."""
        return SymbolTable(self.symbols)

    @cached_property
    def _sections_by_name(self) -> dict[str, Section]:
        names: dict[str, Section] = {}
        for section in self.sections[1:]:
            names.setdefault(section.name, section)
        return names


class _Reader:
    """One pass over the bytes of an object; keeps what error messages need."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.headers: list[_Header] = []
        self.names: list[str] = []
        self.name_bytes = 0

    def read(self) -> ObjectFile:
        string_section = self._read_elf_header()
        self._read_section_names(string_section)
        self._check_sections()
        self._check_overlap()
        sections = [self._section(index) for index in range(len(self.headers))]
        symbols, table = self._read_symbols(sections)
        relocation_sections = self._read_relocations(sections, len(symbols), table)
        return ObjectFile(self.name, sections, symbols, relocation_sections)

    def _error(self, message: str) -> InputError:
        return InputError(f"{self.name}: {message}")

    def _label(self, index: int) -> str:
        name = self.names[index] if index < len(self.names) else ""
        return f"section {index} ({name})" if name else f"section {index}"

    def _read_elf_header(self) -> int:
        data = self.data
        if not data:
            raise self._error("the file is empty")
        if not data.startswith(b"\x7fELF"):
            hint = next((text for magic, text in _OTHER_FORMATS if data.startswith(magic)), "give an AArch64 .ko or .o")
            raise self._error(f"not an ELF file; {hint}")
        if len(data) < _ELF_HEADER.size:
            raise self._error(f"truncated: the ELF header takes {_ELF_HEADER.size} bytes, the file has {len(data)}")
        ident, kind, machine, _, _, _, offset, _, _, _, _, entry_size, count, names = _ELF_HEADER.unpack_from(data)
        if ident[4] != 2:
            raise self._error("a 32-bit ELF file; a 64-bit AArch64 module is needed")
        if ident[5] != 1:
            raise self._error("a big-endian ELF file; a little-endian AArch64 module is needed")
        if machine != _EM_AARCH64:
            raise self._error(f"built for {_MACHINES.get(machine, f'machine {machine}')}; an AArch64 module is needed")
        if kind != _ET_REL:
            found = _FILE_TYPES.get(kind, f"of ELF type {kind}")
            raise self._error(f"not a relocatable object (ET_REL) but {found}; give a .ko or .o")
        if offset and count == 0 and self._counted_in_section_0(offset):
            # More than 65279 sections: the kernel's loader takes e_shnum as it stands, and refuses the file too.
            raise self._error(
                "keeps its number of sections in section 0 (extended numbering), which no module loader reads"
            )
        if offset == 0 or count == 0:
            raise self._error("has no section header table, nothing can be loaded from it")
        if entry_size != _SECTION_HEADER.size:
            raise self._error(f"section headers of {entry_size} bytes, {_SECTION_HEADER.size} expected")
        self._check_range("the section header table", offset, count * entry_size)
        table = data[offset : offset + count * entry_size]
        self.headers = [_Header._make(fields) for fields in _SECTION_HEADER.iter_unpack(table)]
        return int(names)

    def _counted_in_section_0(self, offset: int) -> bool:
        header = self.data[offset : offset + _SECTION_HEADER.size]
        return len(header) == _SECTION_HEADER.size and _Header._make(_SECTION_HEADER.unpack(header)).size > 0

    def _check_range(self, what: str, offset: int, size: int) -> None:
        end = offset + size
        if end > len(self.data):
            raise self._error(
                f"truncated: {what} reaches to byte {end:#x} beyond the end of the file at {len(self.data):#x}"
            )

    def _check_sections(self) -> None:
        total = 0
        for index, header in enumerate(self.headers):
            if index == 0:
                continue
            total += header.size
            if header.type not in (0, SHT_NOBITS):
                self._check_range(self._label(index), header.offset, header.size)
            if total > MEMORY_LIMIT:
                limit = f"the limit is {MEMORY_LIMIT >> 20} MiB"
                raise self._error(f"its sections up to {self._label(index)} take {total >> 20} MiB, {limit}")
            if header.align & (header.align - 1) or header.align > _ALIGN_LIMIT:
                raise self._error(f"{self._label(index)} asks for an impossible alignment of {header.align:#x}")

    def _read_section_names(self, string_section: int) -> None:
        if not 0 < string_section < len(self.headers):
            raise self._error(
                f"section name table number {string_section} is out of range (0..{len(self.headers) - 1})"
            )
        if self.headers[string_section].type != SHT_STRTAB:
            raise self._error(f"section {string_section} should hold the section names but is not a string table")
        strings = self.headers[string_section]
        self._check_range("the section name table", strings.offset, strings.size)
        table = self._bytes(string_section)
        for index, header in enumerate(self.headers):
            self.names.append(self._string(table, header.name, f"the name of section {index}"))
            self._count_names(len(self.names[-1]))

    def _check_overlap(self) -> None:
        filled = sorted(
            (header.offset, header.offset + header.size, index)
            for index, header in enumerate(self.headers)
            if header.type not in (0, SHT_NOBITS) and header.size
        )
        for (_, end, first), (start, _, second) in pairwise(filled):
            if start < end:
                raise self._error(f"{self._label(first)} and {self._label(second)} overlap at file offset {start:#x}")

    def _bytes(self, index: int) -> bytes:
        header = self.headers[index]
        if header.type in (0, SHT_NOBITS):
            return b""
        return self.data[header.offset : header.offset + header.size]

    def _count_names(self, length: int) -> None:
        # Names may share bytes of a string table, so a small file could ask for gigabytes of them.
        self.name_bytes += length
        if self.name_bytes > _NAMES_LIMIT:
            raise self._error(f"its section and symbol names take more than {_NAMES_LIMIT >> 20} MiB")

    def _string(self, table: bytes, offset: int, what: str) -> str:
        if offset == 0 and not table:
            return ""
        if offset >= len(table):
            raise self._error(f"{what} lies at {offset:#x} beyond its string table of {len(table):#x} bytes")
        end = table.find(b"\0", offset, offset + _NAME_LIMIT)
        if end < 0:
            raise self._error(f"{what} does not end within its string table or is longer than {_NAME_LIMIT} bytes")
        return printable(table[offset:end].decode("utf-8", "replace"))

    def _section(self, index: int) -> Section:
        header = self.headers[index]
        size = header.size if index else 0
        return Section(
            index, self.names[index], header.type, header.flags, max(header.align, 1), size,
            header.entsize, header.link, header.info, self._bytes(index),
        )  # fmt: skip

    def _read_symbols(self, sections: list[Section]) -> tuple[list[Symbol], int]:
        tables = [section.index for section in sections if section.type == SHT_SYMTAB]
        if not tables:
            raise self._error("has no symbol table (stripped?); a module cannot be linked without one")
        if len(tables) > 1:
            raise self._error(f"has {len(tables)} symbol tables (sections {tables[0]} and {tables[1]}), one expected")
        table = sections[tables[0]]
        strings = self._linked_strings(table, sections)
        if table.entsize != _SYMBOL.size or table.size % _SYMBOL.size or not table.size:
            raise self._error(f"{self._label(table.index)}: a symbol table of {table.size} bytes is not whole entries")
        if table.info > table.size // _SYMBOL.size:
            raise self._error(f"{self._label(table.index)}: sh_info {table.info} is beyond its last symbol")
        symbols: list[Symbol] = []
        count = len(sections)
        find = strings.find
        for index, (name_at, info, _, shndx, value, size) in enumerate(_SYMBOL.iter_unpack(table.data)):
            if shndx >= count and shndx not in (SHN_ABS, SHN_COMMON):
                raise self._symbol_section_error(index, shndx, count)
            kind = info & 0xF
            if kind == STT_SECTION and not name_at and shndx < count:
                name = sections[shndx].name
            else:
                end = find(b"\0", name_at, name_at + _NAME_LIMIT)
                if end < 0:
                    name = self._string(strings, name_at, f"the name of symbol {index}")
                else:
                    name = strings[name_at:end].decode("utf-8", "replace")
                    if not name.isprintable():
                        name = printable(name)
                    self.name_bytes += end - name_at
            if self.name_bytes > _NAMES_LIMIT:
                self._count_names(0)
            symbols.append(Symbol(index, name, value, size, info >> 4, kind, shndx))
        return symbols, table.index

    def _symbol_section_error(self, index: int, shndx: int, count: int) -> InputError:
        if shndx >= SHN_LORESERVE:
            return self._error(f"symbol {index} uses the unsupported special section index {shndx:#x}")
        return self._error(f"symbol {index} lies in section {shndx}, the file has sections 0..{count - 1}")

    def _linked_strings(self, table: Section, sections: list[Section]) -> bytes:
        if not 0 < table.link < len(sections) or sections[table.link].type != SHT_STRTAB:
            raise self._error(f"{self._label(table.index)}: sh_link {table.link} does not name a string table")
        return sections[table.link].data

    def _read_relocations(self, sections: list[Section], symbol_count: int, table: int) -> list[RelocationSection]:
        result: list[RelocationSection] = []
        for section in sections:
            if section.type not in (SHT_RELA, SHT_REL):
                continue
            if not 0 < section.info < len(sections):
                raise self._error(f"{self._label(section.index)}: sh_info {section.info} does not name a section")
            target = sections[section.info]
            if not target.flags & SHF_ALLOC:
                continue
            if section.type == SHT_REL:
                raise self._error(f"{self._label(section.index)}: REL relocations, AArch64 modules have RELA only")
            if section.link != table:
                raise self._error(
                    f"{self._label(section.index)}: sh_link {section.link} does not name the symbol table"
                )
            if section.entsize != _RELA.size or section.size % _RELA.size:
                raise self._error(f"{self._label(section.index)}: {section.size} bytes are not whole RELA entries")
            result.append(self._relocation_section(section, target, symbol_count))
        return result

    def _relocation_section(self, section: Section, target: Section, symbol_count: int) -> RelocationSection:
        entries = list(map(Relocation._make, _RELA.iter_unpack(section.data)))
        for number, entry in enumerate(entries):
            if entry.symbol >= symbol_count:
                raise self._error(
                    f"{self._label(section.index)}: entry {number} names symbol {entry.symbol}, "
                    f"the file has symbols 0..{symbol_count - 1}"
                )
            if entry.offset >= target.size:
                raise self._error(
                    f"{self._label(section.index)}: entry {number} patches {target.name}+{entry.offset:#x}, "
                    f"the section has {target.size:#x} bytes"
                )
        return RelocationSection(section.index, section.name, target.index, entries)
