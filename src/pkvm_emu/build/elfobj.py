"""Reading, changing and writing AArch64 ELF relocatable objects.

Sections and symbols keep their indices: things are appended or renamed, never removed, so relocations stay valid as
they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pkvm_emu.errors import BuildError

SHT_NULL = 0
SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_RELA = 4
SHT_NOBITS = 8
SHT_REL = 9
SHT_SYMTAB_SHNDX = 18

SHF_WRITE = 0x1
SHF_ALLOC = 0x2
SHF_EXECINSTR = 0x4
SHF_INFO_LINK = 0x40

SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00

STB_LOCAL = 0
STB_GLOBAL = 1
STB_WEAK = 2
STT_SECTION = 3
STT_FILE = 4

_ET_REL = 1
_EM_AARCH64 = 183
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


@dataclass
class Section:
    """One section; ``size`` differs from ``len(data)`` only for SHT_NOBITS."""

    name: str
    type: int = SHT_PROGBITS
    flags: int = 0
    data: bytes = b""
    size: int = 0
    address: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry_size: int = 0


@dataclass
class Symbol:
    """One symbol; ``section`` is a section index or a reserved SHN value."""

    name: str
    value: int = 0
    size: int = 0
    info: int = 0
    other: int = 0
    section: int = SHN_UNDEF

    @property
    def bind(self) -> int:
        """STB_LOCAL, STB_GLOBAL or STB_WEAK."""
        return self.info >> 4

    @property
    def type(self) -> int:
        """STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE."""
        return self.info & 0xF


@dataclass(frozen=True)
class Relocation:
    """One RELA entry: ``offset`` in bytes in the target section, ``symbol`` an index into the symbol table."""

    offset: int
    type: int
    symbol: int
    addend: int

    def pack(self) -> bytes:
        """The 24 bytes of an Elf64_Rela."""
        return _RELA.pack(self.offset, self.symbol << 32 | self.type, self.addend)


@dataclass
class ElfObject:
    """An ELF64 little-endian AArch64 relocatable object."""

    sections: list[Section] = field(default_factory=lambda: [Section("", SHT_NULL, align=0)])
    symbols: list[Symbol] = field(default_factory=lambda: [Symbol("")])

    @classmethod
    def read(cls, path: Path) -> ElfObject:
        """The object in the file *path*. Raises BuildError if it is not an AArch64 relocatable object."""
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise BuildError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, struct.error, IndexError, OverflowError) as error:
            raise BuildError(f"{path} is not an AArch64 relocatable object: {error}") from error

    @classmethod
    def parse(cls, image: bytes) -> ElfObject:
        """The object in *image*. Raises ValueError, struct.error, IndexError or OverflowError if it is none."""
        header = _HEADER.unpack_from(image)
        ident, kind, machine, table = header[0], header[1], header[2], header[6]
        if ident[:6] != _IDENT[:6] or kind != _ET_REL or machine != _EM_AARCH64:
            raise ValueError("wrong ELF header")
        count, names_index = header[12], header[13]
        raw = [_SECTION.unpack_from(image, table + index * _SECTION.size) for index in range(count)]
        names_offset = raw[names_index][4]
        sections = []
        for name, type_, flags, address, offset, size, link, info, align, entry_size in raw:
            data = b"" if type_ in (SHT_NOBITS, SHT_NULL) else image[offset : offset + size]
            if type_ not in (SHT_NOBITS, SHT_NULL) and len(data) != size:
                raise ValueError("section beyond the end of the file")
            text = _string(image, names_offset + name)
            sections.append(Section(text, type_, flags, data, size, address, link, info, align, entry_size))
        for section in sections:
            if section.type in (SHT_RELA, SHT_REL) and section.info >= count:
                raise ValueError("relocations for a section that does not exist")
            if section.type == SHT_RELA and section.size % _RELA.size:
                raise ValueError("a relocation section ends in the middle of an entry")
        symbols = list(_symbols(sections))
        if any(count <= symbol.section < SHN_LORESERVE for symbol in symbols):
            raise ValueError("a symbol of a section that does not exist")
        return cls(sections, symbols)

    def section_index(self, name: str) -> int | None:
        """The index of the first section called *name*, or None."""
        return next((index for index, section in enumerate(self.sections) if section.name == name), None)

    def add_section(self, section: Section) -> int:
        """Append *section*; its index."""
        if section.type != SHT_NOBITS:
            section.size = len(section.data)
        self.sections.append(section)
        return len(self.sections) - 1

    def add_symbol(self, symbol: Symbol) -> int:
        """Append the global *symbol*; its index."""
        if symbol.bind == STB_LOCAL:
            raise ValueError("a local symbol cannot follow the global ones")
        self.symbols.append(symbol)
        return len(self.symbols) - 1

    def relocation_sections(self) -> Iterator[tuple[Section, Section]]:
        """Pairs of a SHT_RELA or SHT_REL section and the section that it applies to."""
        for section in self.sections:
            if section.type in (SHT_RELA, SHT_REL):
                yield section, self.sections[section.info]

    def add_relocations(self, target: int, relocations: list[Relocation]) -> int:
        """Append a RELA section for the section with index *target*; its index."""
        return self.add_section(
            Section(
                f".rela{self.sections[target].name}",
                SHT_RELA,
                SHF_INFO_LINK,
                b"".join(relocation.pack() for relocation in relocations),
                link=self._table(SHT_SYMTAB),
                info=target,
                align=8,
                entry_size=_RELA.size,
            )
        )

    def serialize(self) -> bytes:
        """The object as file content. The symbol table and string tables are made new, the rest is as it stands."""
        self._write_symbols()
        names = self._write_section_names()
        image = bytearray(_HEADER.size)
        rows = [_SECTION.pack(*([0] * 10))]
        for section in self.sections[1:]:
            image += bytes(-len(image) % max(section.align, 1))
            rows.append(
                _SECTION.pack(
                    names[section.name],
                    section.type,
                    section.flags,
                    section.address,
                    len(image),
                    section.size,
                    section.link,
                    section.info,
                    section.align,
                    section.entry_size,
                )
            )
            image += section.data
        image += bytes(-len(image) % 8)
        table = len(image)
        image += b"".join(rows)
        names_index = self.section_index(".shstrtab")
        _HEADER.pack_into(
            image, 0, _IDENT, _ET_REL, _EM_AARCH64, 1, 0, 0, table, 0, 64, 0, 0, 64, len(rows), names_index
        )
        return bytes(image)

    def _table(self, type_: int) -> int:
        for index, section in enumerate(self.sections):
            if section.type == type_:
                return index
        if type_ == SHT_SYMTAB:
            strings = self.add_section(Section(".strtab", SHT_STRTAB))
            return self.add_section(Section(".symtab", SHT_SYMTAB, link=strings, align=8, entry_size=_SYMBOL.size))
        raise ValueError(f"no section of type {type_}")

    def _write_symbols(self) -> None:
        table = self.sections[self._table(SHT_SYMTAB)]
        # LLVM may keep section names and symbol names in one table; the section names get their own below.
        strings, offsets = _string_table(symbol.name for symbol in self.symbols)
        shared = self.sections[table.link]
        if shared.name != ".strtab":
            raise ValueError(f"unexpected string table {shared.name}")
        shared.data, shared.size = strings, len(strings)
        table.data = b"".join(
            _SYMBOL.pack(offsets[s.name], s.info, s.other, s.section, s.value, s.size) for s in self.symbols
        )
        table.size = len(table.data)
        table.info = sum(1 for symbol in self.symbols if symbol.bind == STB_LOCAL)

    def _write_section_names(self) -> dict[str, int]:
        index = self.section_index(".shstrtab")
        if index is None:
            index = self.add_section(Section(".shstrtab", SHT_STRTAB))
        strings, offsets = _string_table(section.name for section in self.sections)
        self.sections[index].data, self.sections[index].size = strings, len(strings)
        return offsets


def relocations_of(section: Section) -> list[Relocation]:
    """The entries of the SHT_RELA *section*."""
    return [
        Relocation(offset, info & 0xFFFFFFFF, info >> 32, addend)
        for offset, info, addend in _RELA.iter_unpack(section.data)
    ]


def _symbols(sections: list[Section]) -> Iterator[Symbol]:
    tables = [section for section in sections if section.type == SHT_SYMTAB]
    if any(section.type == SHT_SYMTAB_SHNDX for section in sections):
        raise ValueError("too many sections")
    if not tables:
        yield Symbol("")
        return
    strings = sections[tables[0].link].data
    for name, info, other, section, value, size in _SYMBOL.iter_unpack(tables[0].data):
        yield Symbol(_string(strings, name), value, size, info, other, section)


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode("utf-8", "surrogateescape")


def _string_table(names: Iterator[str]) -> tuple[bytes, dict[str, int]]:
    table = bytearray(b"\0")
    offsets = {"": 0}
    for name in names:
        if name not in offsets:
            offsets[name] = len(table)
            table += name.encode("utf-8", "surrogateescape") + b"\0"
    return bytes(table), offsets
