"""Joining sections of one object, as a linker script's output section does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pkvm_emu.elf.elements import SHT_NOBITS, SHT_PROGBITS, RelocationSection, Section, align_up
from pkvm_emu.elf.object_file import ObjectFile

#: From a section number of the original to (section number, byte offset) in the merged object.
SectionMap = dict[int, tuple[int, int]]

#: Order of sections within an output; equal keys keep file order.
SortKey = tuple[int, str]


def merge_sections(
    source: ObjectFile, rule: Callable[[Section], tuple[str, SortKey] | None]
) -> tuple[ObjectFile, SectionMap]:
    """Join the sections of ``source`` that ``rule`` gives the same output name.

    Args:
        source: the object to read; it is not changed.
        rule: returns (output name, sort key) for a section to join, None for one to keep.

    Returns:
        The object with the first member of each output replaced by the whole, and where every section went. Symbols and
        relocations keep their order; section symbols become offsets in the output.
    """
    outputs: dict[str, list[tuple[SortKey, int, Section]]] = {}
    for section in source.sections[1:]:
        joined = rule(section) if section.is_alloc else None
        if joined is not None:
            outputs.setdefault(joined[0], []).append((joined[1], section.index, section))
    where: SectionMap = {section.index: (section.index, 0) for section in source.sections}
    sections = list(source.sections)
    for name, members in outputs.items():
        parts = [section for _, _, section in sorted(members, key=lambda member: member[:2])]
        whole = _join(name, parts, where)
        for part in parts:
            sections[part.index] = replace(part, flags=0, size=0, data=b"", type=SHT_PROGBITS)
        sections[whole.index] = whole
    symbols = [
        symbol._replace(shndx=where[symbol.shndx][0], value=symbol.value + where[symbol.shndx][1])
        if symbol.in_section
        else symbol
        for symbol in source.symbols
    ]
    relocations = []
    for table in source.relocation_sections:
        target, shift = where[table.target]
        entries = [entry._replace(offset=entry.offset + shift) for entry in table.entries]
        relocations.append(RelocationSection(table.index, table.name, target, entries))
    return ObjectFile(source.name, sections, symbols, relocations), where


def _join(name: str, parts: list[Section], where: SectionMap) -> Section:
    index = min(part.index for part in parts)
    is_nobits = all(part.is_nobits for part in parts)
    data = bytearray()
    size, flags, alignment = 0, 0, 1
    for part in parts:
        start = align_up(size, part.align)
        where[part.index] = (index, start)
        if not is_nobits:
            data += bytes(start - len(data)) + part.data + bytes(part.size - len(part.data))
        size = start + part.size
        flags |= part.flags
        alignment = max(alignment, part.align)
    kind = SHT_NOBITS if is_nobits else SHT_PROGBITS
    return Section(index, name, kind, flags, alignment, size, 0, 0, 0, bytes(data))
