"""The bug table: which ``brk`` is a WARN or a BUG, and of which source line.

``__bug_table`` holds 12-byte entries {s32 bug, s32 file, u16 line, u16 flags}, references relative to their own place.
Source: include/asm-generic/bug.h with CONFIG_DEBUG_BUGVERBOSE, as in GKI.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pkvm_emu.elf.link import LinkedImage

SECTION = "__bug_table"
_ENTRY = struct.Struct("<iiHH")
_WARNING = 1
_ONCE = 2
_NAME_LIMIT = 4096


class BugEntry(NamedTuple):
    """One WARN or BUG: EL1 VA of its ``brk``, and where it is in the source (``file`` None when not recorded)."""

    va: int
    file: str | None
    line: int
    is_warning: bool
    is_once: bool


def bug_table(image: LinkedImage) -> dict[int, BugEntry]:
    """Return the bug table by VA of the ``brk``; entries that point outside of the module are left out."""
    section = image.module.section(SECTION)
    if section is None or section.index not in image.layout.placements:
        return {}
    table = image.layout.placements[section.index]
    named = {entry.offset for entry in image.module.object.relocations_of(section.index)}
    entries: dict[int, BugEntry] = {}
    whole = section.size // _ENTRY.size * _ENTRY.size
    for number, (bug, file, line, flags) in enumerate(_ENTRY.iter_unpack(image.read(table, whole))):
        offset = number * _ENTRY.size
        va = table + offset
        if not image.contains(va + bug, 4):
            continue
        name = _string(image, va + 4 + file) if offset + 4 in named or file else None
        entries.setdefault(va + bug, BugEntry(va + bug, name, line, bool(flags & _WARNING), bool(flags & _ONCE)))
    return entries


def _string(image: LinkedImage, va: int) -> str | None:
    section = image.section_at(va)
    if section is None:
        return None
    position = va - image.layout.base
    end = position + min(_NAME_LIMIT, image.layout.placements[section.index] + section.size - va)
    return bytes(image.memory[position:end]).partition(b"\0")[0].decode("utf-8", "replace")
