"""The module linked for inspection: real addresses for everything it defines, and a name for every address.

The module is linked at a fixed base with one address for each undefined symbol right behind it, so that code and data refer to
each other as in memory. Alternatives that the module's loader applies on every protected system are applied; static keys stay
as they are and both of their ways count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pkvm_emu.abi.generation import Generation
from pkvm_emu.elf.alternatives import apply_alternatives
from pkvm_emu.elf.dwarf import SourceLines
from pkvm_emu.elf.elements import NVHE_PREFIX, STT_FUNC, Section
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import LinkedImage, link
from pkvm_emu.elf.module_file import THIS_MODULE_SECTION, ModuleFile
from pkvm_emu.elf.relocation import BRANCH_TYPES
from pkvm_emu.elf.static_keys import static_keys
from pkvm_emu.errors import InputError

BASE = 0xFFFF_FFC0_0100_0000
_EXTERNAL_SPACING = 16
_STRING_LIMIT = 512
_OBJECT_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the module's code or data.

    ``symbol`` is without the ``__kvm_nvhe_`` prefix, ``el`` 2 for what is mapped at EL2, ``line`` ``file:line`` or None.
    """

    symbol: str
    offset: int
    section: str
    section_offset: int
    el: int
    line: str | None

    def __str__(self) -> str:
        text = f"{self.symbol}+{self.offset:#x}" if self.offset else self.symbol
        return f"{text} ({self.line})" if self.line else text


def short(name: str) -> str:
    """A symbol's name in the source: without the EL2 prefix, and without the suffix of 5.15's CFI jump tables."""
    return name.removeprefix(NVHE_PREFIX).removesuffix(".cfi_jt")


class Program:
    """A module ready for analysis.

    Attributes:
        file: the module.
        generation: whose numbers are used; None where the module's is not known (nothing that needs one is found then).
        image: the linked bytes.
        end: first address behind the image; addresses from here on stand for undefined symbols.
    """

    def __init__(self, file: ModuleFile, generation: Generation | None) -> None:
        self.file = file
        self.generation = generation
        layout = Layout.assign(file, BASE)
        self.end = BASE + layout.size
        self._externals: list[str] = []
        self.image: LinkedImage = link(file, layout, self._external)
        self._apply_alternatives()
        self._hyp = {section.index for section in file.hyp_mapped_sections}
        self._lines = SourceLines(file) if file.section(".debug_line") is not None else None

    def _external(self, name: str) -> int:
        self._externals.append(name)
        return self.end + _EXTERNAL_SPACING * (len(self._externals) - 1)

    def _apply_alternatives(self) -> None:
        known = self.generation.capabilities if self.generation else {}
        wanted = {known[name] for name in ("ALWAYS_SYSTEM", "KVM_PROTECTED_MODE") if name in known}
        if wanted:
            apply_alternatives(self.image, wanted.__contains__)

    def external(self, va: int) -> str | None:
        """The undefined symbol that ``va`` stands for, or None."""
        number, rest = divmod(va - self.end, _EXTERNAL_SPACING)
        return self._externals[number] if rest == 0 and 0 <= number < len(self._externals) else None

    def is_address(self, value: int) -> bool:
        """True for an address of the module or of an undefined symbol."""
        return BASE <= value < self.end + _EXTERNAL_SPACING * len(self._externals)

    @cached_property
    def code_sections(self) -> list[Section]:
        """Sections with instructions, in file order."""
        placed = self.image.layout.placements
        return [s for s in self.file.sections if s.is_code and s.index in placed and len(s.data) >= 4]

    def va_of(self, section: Section) -> int:
        """Address of a section."""
        return self.image.layout.placements[section.index]

    def is_el2(self, section: Section) -> bool:
        """True for a section that is mapped at EL2."""
        return section.index in self._hyp

    def words(self, section: Section) -> tuple[int, ...]:
        """The section's instruction words, linked."""
        size = section.size & ~3
        return struct.unpack(f"<{size // 4}I", self.image.read(self.va_of(section), size))

    @cached_property
    def this_module(self) -> tuple[int, int]:
        """Address range [start, end) of ``struct module``; empty for a raw object."""
        section = self.file.section(THIS_MODULE_SECTION)
        if section is None or section.index not in self.image.layout.placements:
            return (0, 0)
        start = self.va_of(section)
        return start, start + section.size

    @cached_property
    def function_starts(self) -> dict[int, int]:
        """Address → size in bytes (0: not known) of everything that the symbol table calls a function."""
        starts: dict[int, int] = {}
        placed = self.image.layout.placements
        code = {section.index for section in self.code_sections}
        for symbol in self.file.symbols:
            if symbol.type == STT_FUNC and symbol.shndx in code and symbol.value % 4 == 0:
                va = placed[symbol.shndx] + symbol.value
                starts[va] = max(symbol.size, starts.get(va, 0))
        return starts

    @cached_property
    def extra_edges(self) -> dict[int, list[int]]:
        """Additional ways of the code: place of a static key → where the other state of the key continues."""
        edges: dict[int, list[int]] = {}
        for key in static_keys(self.image):
            edges.setdefault(key.code, []).extend((key.target, key.code + 4))
        return edges

    def is_hyp_text(self, va: int) -> bool:
        """True for an address of EL2 code."""
        section = self.image.section_at(va)
        return section is not None and section.is_code and self.is_el2(section)

    def is_code(self, va: int) -> bool:
        """True for an address of code at either level."""
        section = self.image.section_at(va)
        return section is not None and section.is_code

    def is_writable(self, va: int) -> bool:
        """True for an address of data that may change."""
        section = self.image.section_at(va)
        return (
            section is None
            or section.is_writable
            or section.name.startswith((".data", ".bss", ".hyp.data", ".hyp.bss"))
        )

    def name(self, va: int) -> str:
        """``symbol+0x10`` for any address, without prefix; a number where nothing is known."""
        external = self.external(va)
        if external is not None:
            return external
        found = self.image.symbolize(va)
        if found is None:
            return f"{va:#x}"
        return f"{short(found.name)}+{found.offset:#x}" if found.offset else short(found.name)

    def place(self, va: int) -> Place:
        """Where ``va`` is, with the source line when the module carries DWARF."""
        section = self.image.section_at(va)
        found = self.image.symbolize(va)
        if section is None or found is None:
            return Place(f"{va:#x}", 0, "", 0, 1, None)
        at = va - self.va_of(section)
        line = None
        if self._lines is not None:
            try:
                source = self._lines.lookup(section.index, at)
                line = f"{source.file}:{source.line}" if source else None
            except InputError:
                self._lines = None
        return Place(short(found.name), found.offset, section.name, at, 2 if self.is_el2(section) else 1, line)

    def string(self, va: int) -> str | None:
        """The C string of printable text at ``va``, None where there is none (or an empty one)."""
        section = self.image.section_at(va)
        if section is None or section.is_code or section.is_nobits:
            return None
        end = min(section.size - (va - self.va_of(section)), _STRING_LIMIT)
        text = self.image.read(va, end)
        data, nul, _ = text.partition(b"\0")
        if not nul or not data:
            return None
        decoded = data.decode("latin-1")
        return decoded if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in data) else None

    def object_pointers(self, va: int) -> list[int]:
        """The addresses of code in the data object around ``va``, in order: what a table of functions holds."""
        return [value for value in self._object_words(va) if self.is_code(value)]

    def callbacks(self, va: int) -> list[int]:
        """The functions in the object around ``va`` and in the objects that it points to."""
        found = []
        for value in self._object_words(va):
            if self.is_code(value):
                found.append(value)
            elif self.is_address(value):
                found += self.object_pointers(value)
        return list(dict.fromkeys(found))

    def _object_words(self, va: int) -> list[int]:
        found = self.image.symbolize(va)
        section = self.image.section_at(va)
        if found is None or section is None or section.is_code or section.is_nobits:
            return []
        start = va - found.offset
        size = min(found.size, _OBJECT_LIMIT, section.size - (start - self.va_of(section))) & ~7
        return list(struct.unpack(f"<{size // 8}Q", self.image.read(start, size)))

    def code_references(self) -> Iterator[int]:
        """Functions whose address is taken by a relocation other than a branch."""
        symbols, placed = self.file.symbols, self.image.layout.placements
        starts = self.function_starts
        skipped = ("__bug_table", ".altinstructions", "__jump_table", ".hyp.reloc", ".eh_frame", ".init.eh_frame")
        for part in self.file.relocation_sections:
            if self.file.sections[part.target].name in skipped:
                continue
            for _, kind, number, addend in part.entries:
                symbol = symbols[number]
                if kind in BRANCH_TYPES or symbol.shndx not in placed:
                    continue
                va = placed[symbol.shndx] + symbol.value + addend
                if va in starts:
                    yield va
