"""One module out of two raw objects: the EL1 object and the EL2 object that a Kbuild or Bazel build leaves behind.

What the module link and modpost would add is synthesised where it is missing: joined ``_hyp_events`` records, and
``struct module`` with its references to the init and exit functions. ``hyp_object`` brings the EL2 half into form.
Source: arch/arm64/include/asm/module.lds.h and scripts/mod/modpost.c.
"""

from __future__ import annotations

from dataclasses import replace

from pkvm_emu.elf.elements import (
    SHF_ALLOC,
    SHF_WRITE,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STB_WEAK,
    STT_OBJECT,
    Relocation,
    RelocationSection,
    Section,
    Symbol,
)
from pkvm_emu.elf.hyp_object import as_hyp_object
from pkvm_emu.elf.merge import SectionMap, SortKey, merge_sections
from pkvm_emu.elf.module_file import THIS_MODULE_SECTION, DebugPart
from pkvm_emu.elf.object_file import ObjectFile
from pkvm_emu.elf.relocation import R_AARCH64_ABS64
from pkvm_emu.errors import InputError

#: Size of ``struct module`` and offsets of ``init`` and ``exit`` in it, bytes: those of a stock android16-6.12 build.
_THIS_MODULE_SIZE = 1600
_INIT_OFFSET = 392
_EXIT_OFFSET = 1504
_EVENTS = "_hyp_events"


def combine_objects(el1: bytes, nvhe: bytes, name: str) -> tuple[ObjectFile, list[DebugPart]]:
    """Combine the two objects of a module.

    Args:
        el1: the EL1 object (``el1.o``).
        nvhe: the EL2 object (``kvm_nvhe.o``, or one that has not been prefixed or scanned for hyp relocations yet).
        name: what error messages call the module.

    Returns:
        The combined object, and where each half's debug information is.

    Raises:
        InputError: an object is unsound, the second has no EL2 code, or both define a symbol.
    """
    first = ObjectFile.parse(el1, f"{name} (EL1 object)")
    first, first_map = merge_sections(first, _merge_events)
    second, second_map = as_hyp_object(ObjectFile.parse(nvhe, f"{name} (EL2 object)"))
    combiner = _Combiner(name)
    parts = [
        DebugPart(el1, _placed(first_map, combiner.add(first))),
        DebugPart(nvhe, _placed(second_map, combiner.add(second))),
    ]
    combiner.add_this_module(name)
    return ObjectFile(name, combiner.sections, combiner.symbols, combiner.relocations), parts


def _merge_events(section: Section) -> tuple[str, SortKey] | None:
    # By name, so that these records and the ids of the EL2 half stay parallel.
    return (_EVENTS, (0, section.name)) if section.name.startswith(_EVENTS + ".") else None


def _placed(where: SectionMap, numbering: dict[int, int]) -> SectionMap:
    return {index: (numbering[home], shift) for index, (home, shift) in where.items() if home in numbering}


class _Combiner:
    """Appends objects: section and symbol numbers of later ones are shifted, global symbols are merged by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sections: list[Section] = []
        self.symbols: list[Symbol] = []
        self.relocations: list[RelocationSection] = []
        self.globals: dict[str, int] = {}

    def add(self, part: ObjectFile) -> dict[int, int]:
        """Append ``part`` and return its section numbers -> combined section numbers."""
        section_base = max(len(self.sections) - 1, 0)
        first = 1 if self.sections else 0
        numbering = {section.index: section.index + section_base for section in part.sections[1:]}
        self.sections += [replace(section, index=section.index + section_base) for section in part.sections[first:]]
        symbol_numbers = [self._add_symbol(symbol, numbering) for symbol in part.symbols]
        for relocations in part.relocation_sections:
            entries = [entry._replace(symbol=symbol_numbers[entry.symbol]) for entry in relocations.entries]
            self.relocations.append(
                RelocationSection(
                    numbering[relocations.index], relocations.name, numbering[relocations.target], entries
                )
            )
        return numbering

    def _add_symbol(self, symbol: Symbol, numbering: dict[int, int]) -> int:
        if symbol.number == 0 and self.symbols:
            return 0
        moved = symbol._replace(number=len(self.symbols), shndx=numbering.get(symbol.shndx, symbol.shndx))
        if symbol.bind == STB_LOCAL:
            self.symbols.append(moved)
            return moved.number
        known = self.globals.get(symbol.name)
        if known is None:
            self.globals[symbol.name] = moved.number
            self.symbols.append(moved)
            return moved.number
        self._merge(known, moved)
        return known

    def _merge(self, known: int, new: Symbol) -> None:
        old = self.symbols[known]
        if not new.is_defined:
            is_weak = old.bind == STB_WEAK and new.bind == STB_WEAK
            if not old.is_defined and not is_weak:
                self.symbols[known] = old._replace(bind=STB_GLOBAL)
        elif not old.is_defined or (old.bind == STB_WEAK and new.bind != STB_WEAK):
            self.symbols[known] = new._replace(number=known)
        elif new.bind != STB_WEAK and old.bind != STB_WEAK:
            raise InputError(f"{self.name}: {new.name} is defined in both objects")

    def add_this_module(self, name: str) -> None:
        """Add ``struct module`` with the references to ``init_module`` and ``cleanup_module``, unless it is there."""
        if any(section.name == THIS_MODULE_SECTION for section in self.sections):
            return
        if "init_module" not in self.globals or not self.symbols[self.globals["init_module"]].is_defined:
            raise InputError(f"{name}: the EL1 object defines no init_module (module_init() missing?)")
        table = self._add_section(THIS_MODULE_SECTION, SHF_ALLOC | SHF_WRITE, 64, bytes(_THIS_MODULE_SIZE))
        self._define_this_module(table)
        entries = [
            Relocation(offset, R_AARCH64_ABS64, self.globals[function], 0)
            for function, offset in (("init_module", _INIT_OFFSET), ("cleanup_module", _EXIT_OFFSET))
            if function in self.globals
        ]
        self._add_relocations(table, entries)

    def _define_this_module(self, section: int) -> None:
        known = self.globals.get("__this_module")
        number = len(self.symbols) if known is None else known
        symbol = Symbol(number, "__this_module", 0, _THIS_MODULE_SIZE, STB_GLOBAL, STT_OBJECT, section)
        if known is None:
            self.symbols.append(symbol)
            self.globals[symbol.name] = number
        else:
            self.symbols[known] = symbol

    def _add_section(self, name: str, flags: int, alignment: int, data: bytes) -> int:
        number = len(self.sections)
        self.sections.append(Section(number, name, SHT_PROGBITS, flags, alignment, len(data), 0, 0, 0, data))
        return number

    def _add_relocations(self, target: int, entries: list[Relocation]) -> None:
        if entries:
            name = f".rela{self.sections[target].name}"
            self.relocations.append(RelocationSection(len(self.sections), name, target, entries))
