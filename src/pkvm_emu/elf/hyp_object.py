"""The EL2 half as an object: from what a compiler leaves to what the hyp link, ``gen-hyprel`` and objcopy make of it.

An object that has been through those steps (``kvm_nvhe.o``) passes unchanged.
Source: arch/arm64/kvm/hyp/nvhe/module.lds.S, Makefile.nvhe and gen-hyprel.c.
"""

from __future__ import annotations

from pkvm_emu.elf.elements import (
    NVHE_PREFIX,
    SHF_ALLOC,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STT_FILE,
    STT_NOTYPE,
    STT_SECTION,
    Relocation,
    RelocationSection,
    Section,
    Symbol,
)
from pkvm_emu.elf.merge import SectionMap, SortKey, merge_sections
from pkvm_emu.elf.module_file import HYP_MAPPED_SECTIONS
from pkvm_emu.elf.object_file import ObjectFile
from pkvm_emu.elf.relocation import R_AARCH64_ABS64, R_AARCH64_PREL32
from pkvm_emu.errors import InputError

_KINDS = (".text", ".bss", ".rodata", ".data")
_EVENT_IDS = ".hyp.event_ids"
_PRINTK_OFFSETS = ".hyp.printk_fmt_offset"

#: Symbols that the hyp linker script defines: section, and whether at its end.
_BRACKETS = {
    "__hyp_event_ids_start": (".hyp.event_ids", False),
    "__hyp_event_ids_end": (".hyp.event_ids", True),
    "__hyp_printk_fmts_start": (".hyp.printk_fmts", False),
    "__hyp_printk_fmts_end": (".hyp.printk_fmts", True),
}


def as_hyp_object(source: ObjectFile) -> tuple[ObjectFile, SectionMap]:
    """Bring an EL2 object into its linked form.

    Args:
        source: an object with ``.hyp.*`` sections and prefixed symbols, or a plain compiled one.

    Returns:
        The object, and where every section of ``source`` went.

    Raises:
        InputError: there is no EL2 code in it.
    """
    linked, where = merge_sections(source, _output_section)
    if linked.section(".hyp.text") is None:
        raise InputError(f"{source.name}: has no EL2 code in .hyp.text or .text; give the module's kvm_nvhe.o")
    linked = _with_brackets(linked)
    if not any(symbol.name.startswith(NVHE_PREFIX) for symbol in linked.symbols):
        linked.symbols = [_prefixed(symbol) for symbol in linked.symbols]
    if linked.section(".hyp.reloc") is None:
        _add_hyp_relocations(linked)
    return linked, where


def _output_section(section: Section) -> tuple[str, SortKey] | None:
    name = section.name
    for kind in _KINDS:
        if section.size and (name == kind or name.startswith(kind + ".")):
            return ".hyp" + kind, (0, "")
    if name.startswith(_EVENT_IDS):
        return _EVENT_IDS, (0, name)
    if name.startswith(_PRINTK_OFFSETS):
        return _EVENT_IDS, (1, "")
    return None


def _with_brackets(source: ObjectFile) -> ObjectFile:
    symbols = []
    for symbol in source.symbols:
        name, at_end = _BRACKETS.get(symbol.name.removeprefix(NVHE_PREFIX), ("", False))
        section = source.section(name) if not symbol.is_defined else None
        if section is not None:
            value = section.size if at_end else 0
            symbol = symbol._replace(shndx=section.index, value=value, bind=STB_GLOBAL, type=STT_NOTYPE)
        symbols.append(symbol)
    return ObjectFile(source.name, source.sections, symbols, source.relocation_sections)


def _prefixed(symbol: Symbol) -> Symbol:
    if not symbol.name or symbol.type in (STT_SECTION, STT_FILE):
        return symbol
    return symbol._replace(name=NVHE_PREFIX + symbol.name)


def _add_hyp_relocations(target: ObjectFile) -> None:
    """Append ``.hyp.reloc``: one entry for each ABS64 in a section that is mapped at EL2."""
    slots = [
        (part.target, entry.offset)
        for part in target.relocation_sections
        if target.sections[part.target].name in HYP_MAPPED_SECTIONS
        for entry in part.entries
        if entry.type == R_AARCH64_ABS64
    ]
    table = len(target.sections)
    size = 4 * len(slots)
    target.sections.append(Section(table, ".hyp.reloc", SHT_PROGBITS, SHF_ALLOC, 4, size, 0, 0, 0, bytes(size)))
    bases: dict[int, int] = {}
    for home, _ in slots:
        if home not in bases:
            bases[home] = len(target.symbols)
            name = target.sections[home].name
            target.symbols.append(Symbol(bases[home], name, 0, 0, STB_LOCAL, STT_SECTION, home))
    entries = [
        Relocation(4 * number, R_AARCH64_PREL32, bases[home], offset) for number, (home, offset) in enumerate(slots)
    ]
    target.relocation_sections.append(RelocationSection(table, ".rela.hyp.reloc", table, entries))
