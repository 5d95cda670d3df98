"""Static keys: places in code that are a NOP or a branch depending on a flag.

``__jump_table`` holds 16-byte entries {s32 code, s32 target, s64 key}, all relative to their own place; bit 0 of the
key says that a true key falls through (static_branch_likely; otherwise a true key branches), bit 1 that the code is
init code. 5.15 modules test CPU features this way (``cpu_hwcap_keys``, ``arm64_const_caps_ready``). Source:
include/linux/jump_label.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pkvm_emu.elf.instruction import NOP, branch
from pkvm_emu.elf.link import LinkedImage
from pkvm_emu.errors import InputError

SECTION = "__jump_table"
_ENTRY = struct.Struct("<iiq")


class StaticKeyEntry(NamedTuple):
    """One place that depends on a key: VAs of the code, of the branch target and of the key itself.

    ``key`` and ``key_offset`` name the key (``cpu_hwcap_keys``, 0x290); ``is_likely`` is bit 0: the place
    is a NOP while the key is true, otherwise it is a NOP while the key is false.
    """

    code: int
    target: int
    key_va: int
    key: str
    key_offset: int
    is_likely: bool


def static_keys(image: LinkedImage) -> list[StaticKeyEntry]:
    """List the static key places of a linked module in table order; empty when it has none.

    Raises:
        InputError: an entry names code outside of the module.
    """
    section = image.module.section(SECTION)
    if section is None or section.index not in image.layout.placements:
        return []
    table = image.layout.placements[section.index]
    names = {entry.offset: entry for entry in image.module.object.relocations_of(section.index)}
    entries = []
    whole = section.size // _ENTRY.size * _ENTRY.size
    for number, (code, target, key) in enumerate(_ENTRY.iter_unpack(image.read(table, whole))):
        va = table + number * _ENTRY.size
        key_va = va + 8 + (key & ~3)
        relocation = names.get(number * _ENTRY.size + 8)
        symbol = image.module.symbols[relocation.symbol] if relocation else None
        if relocation and symbol and not symbol.in_section:
            name, offset = symbol.name, relocation.addend & ~3
        else:
            found = image.symbolize(key_va)
            name, offset = (found.name, found.offset) if found else ("", 0)
        if image.section_at(va + code, 4) is None or (va + code) % 4:
            raise InputError(
                f"{image.module.file_name}: {SECTION} entry {number} patches {va + code:#x}, "
                f"which is no instruction of the module"
            )
        entries.append(StaticKeyEntry(va + code, va + 4 + target, key_va, name, offset, bool(key & 1)))
    return entries


def compiled_state(image: LinkedImage, entry: StaticKeyEntry) -> bool:
    """The state of a key that the code of one place was compiled for: the one that it has by its definition."""
    return (image.read_int(entry.code, 4) == NOP) == entry.is_likely


def apply_static_key(image: LinkedImage, key: str, enabled: bool, offset: int | None = None) -> int:
    """Set every place that depends on ``key`` and return how many there are.

    Args:
        image: the linked module, changed in place.
        key: symbol name of the key, or of the array that it lies in.
        enabled: the key's state.
        offset: byte offset of the key in the array; None for all places of the symbol.

    Raises:
        InputError: an entry is unsound or its target is beyond ±128 MiB.
    """
    matching = [part for part in static_keys(image) if part.key == key and offset in (None, part.key_offset)]
    for entry in matching:
        word: int | None = NOP
        if enabled != entry.is_likely:
            word = branch(entry.code, entry.target)
        if word is None:
            raise InputError(
                f"{image.module.file_name}: the static key branch at {entry.code:#x} cannot reach {entry.target:#x}"
            )
        image.write(entry.code, word.to_bytes(4, "little"))
    return len(matching)
