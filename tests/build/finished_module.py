"""A finished ``.ko``, opened with a reader that is not ours."""

from __future__ import annotations

import struct
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section


class Module:
    """A finished ``.ko``, opened with a reader that is not ours."""

    def __init__(self, path: Path) -> None:
        self.elf = ELFFile(path.open("rb"))

    def section(self, name: str) -> Section:
        section = self.elf.get_section_by_name(name)
        assert section is not None, f"{name} is absent"
        return section

    def names(self) -> list[str]:
        return [section.name for section in self.elf.iter_sections()]

    def symbols(self) -> dict[str, tuple[int, int | str]]:
        table = self.elf.get_section_by_name(".symtab")
        return {symbol.name: (symbol["st_value"], symbol["st_shndx"]) for symbol in table.iter_symbols()}

    def word_before(self, symbol: str) -> int:
        value, index = self.symbols()[symbol]
        data = self.elf.get_section(index).data()
        return struct.unpack_from("<I", data, value - 4)[0] if value >= 4 else 0

    def modinfo(self) -> list[str]:
        return [text.decode() for text in self.section(".modinfo").data().split(b"\0") if text]

    def relocations(self, section: str) -> list[tuple[int, int, str, int]]:
        table = self.elf.get_section_by_name(".symtab")
        rela = self.elf.get_section_by_name(f".rela{section}")
        if rela is None:
            return []
        result = []
        for entry in rela.iter_relocations():
            symbol = table.get_symbol(entry["r_info_sym"])
            name = symbol.name or self.elf.get_section(symbol["st_shndx"]).name
            result.append((entry["r_offset"], entry["r_info_type"], name, entry["r_addend"]))
        return result
