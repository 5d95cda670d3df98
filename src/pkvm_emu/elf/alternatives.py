"""Alternatives: instructions that the kernel replaces when a CPU capability is present.

``.altinstructions`` holds 12-byte entries {s32 original, s32 replacement, u16 capability, u8 original length, u8
replacement length}; both references are relative to their own place. With bit 15 of the capability set (5.15: with
replacement length 0) the replacement is a callback. Source: arch/arm64/include/asm/alternative.h,
arch/arm64/kernel/alternative.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from pkvm_emu.elf.elements import PAGE_SIZE
from pkvm_emu.elf.instruction import (
    NOP,
    branch_field,
    decode_adr,
    encode_adr,
    is_adr,
    is_adrp,
    is_literal_load,
)
from pkvm_emu.elf.link import LinkedImage
from pkvm_emu.errors import InputError

SECTION = ".altinstructions"
_ENTRY = struct.Struct("<iiHBB")
_CALLBACK = 0x8000


class CallbackKind(Enum):
    """What a callback of an alternative does to the original instructions."""

    NOPS = "every original instruction becomes a NOP"


#: Callbacks that modules use.
STANDARD_CALLBACKS: Mapping[str, CallbackKind] = {"alt_cb_patch_nops": CallbackKind.NOPS}


class Alternative(NamedTuple):
    """One entry: lengths in bytes, ``capability`` without the callback bit, ``callback`` the function's name or None.

    ``is_callback`` is True with ``callback`` None when the function has no name.
    """

    original: int
    replacement: int
    capability: int
    original_length: int
    replacement_length: int
    is_callback: bool
    callback: str | None


@dataclass(slots=True)
class PatchReport:
    """What was done: applied entries, and wanted entries whose callback nobody serves."""

    applied: list[Alternative] = field(default_factory=list)
    unserved: list[Alternative] = field(default_factory=list)


def parse_alternatives(image: LinkedImage) -> list[Alternative]:
    """List the alternatives of a linked module in table order; empty when it has none.

    Raises:
        InputError: an entry lies outside of the module, or its lengths make no sense.
    """
    section = image.module.section(SECTION)
    if section is None or section.index not in image.layout.placements:
        return []
    table = image.layout.placements[section.index]
    callbacks = _callback_names(image, section.index)
    entries = []
    whole = section.size // _ENTRY.size * _ENTRY.size
    for number, (original, replacement, capability, length, new_length) in enumerate(
        _ENTRY.iter_unpack(image.read(table, whole))
    ):
        va = table + number * _ENTRY.size
        is_callback = bool(capability & _CALLBACK) or (new_length == 0 and length != 0)
        entry = Alternative(
            va + original,
            va + 4 + replacement,
            capability & ~_CALLBACK,
            length,
            new_length,
            is_callback,
            callbacks.get(number * _ENTRY.size + 4) if is_callback else None,
        )
        _check(image, number, entry)
        entries.append(entry)
    return entries


def apply_alternatives(
    image: LinkedImage,
    wanted: Callable[[int], bool],
    callbacks: Mapping[str, CallbackKind] = STANDARD_CALLBACKS,
) -> PatchReport:
    """Patch every entry whose capability is ``wanted``, in table order.

    Args:
        image: the linked module, changed in place.
        wanted: tells of a capability number whether the CPU and the kernel have it (numbers are per kernel line).
        callbacks: what each callback does, by symbol name.

    Raises:
        InputError: an entry is unsound, or its replacement is code that the kernel refuses to move.
    """
    report = PatchReport()
    for entry in parse_alternatives(image):
        if not wanted(entry.capability):
            continue
        if not entry.is_callback:
            _replace(image, entry)
        elif callbacks.get(entry.callback or "") is CallbackKind.NOPS:
            _write_words(image, entry.original, [NOP] * (entry.original_length // 4))
        else:
            report.unserved.append(entry)
            continue
        report.applied.append(entry)
    return report


def move_instruction(word: int, old: int, new: int, start: int, end: int) -> int | None:
    """Return ``word`` moved from VA ``old`` to VA ``new`` with the same target, or None when it cannot be moved.

    Branches that stay inside of the replacement [start, end] are kept as they are.
    """
    field = branch_field(word)
    if field is not None:
        target = old + 4 * field.decode(word)
        if start <= target <= end:
            return word
        distance = (target - new) >> 2
        moved = field.encode(word, distance)
        return moved if field.decode(moved) == distance else None
    if is_adrp(word):
        target = (old & -PAGE_SIZE) + PAGE_SIZE * decode_adr(word)
        pages = (target - (new & -PAGE_SIZE)) // PAGE_SIZE
        return encode_adr(word, pages) if -(1 << 20) <= pages < 1 << 20 else None
    return None if is_adr(word) or is_literal_load(word) else word


def _replace(image: LinkedImage, entry: Alternative) -> None:
    start, end = entry.replacement, entry.replacement + entry.replacement_length
    words = []
    for position in range(0, entry.replacement_length, 4):
        word = image.read_int(start + position, 4)
        moved = move_instruction(word, start + position, entry.original + position, start, end)
        if moved is None:
            raise InputError(
                f"{image.module.file_name}: the alternative at {_name(image, start + position)} is PC-relative code "
                f"({word:#010x}) that cannot be moved to {_name(image, entry.original + position)}"
            )
        words.append(moved)
    words += [NOP] * (entry.original_length // 4 - len(words))
    _write_words(image, entry.original, words)


def _write_words(image: LinkedImage, va: int, words: list[int]) -> None:
    image.write(va, b"".join(word.to_bytes(4, "little") for word in words))


def _check(image: LinkedImage, number: int, entry: Alternative) -> None:
    reason = None
    if entry.original_length % 4 or entry.replacement_length % 4 or entry.original % 4:
        reason = "is not made of whole instructions"
    elif image.section_at(entry.original, max(entry.original_length, 1)) is None:
        reason = f"patches {entry.original:#x}, outside of the module's sections"
    elif entry.is_callback:
        reason = None
    elif entry.replacement_length > entry.original_length:
        reason = f"replaces {entry.original_length} bytes by {entry.replacement_length}"
    elif image.section_at(entry.replacement, max(entry.replacement_length, 1)) is None:
        reason = f"takes code from {entry.replacement:#x}, outside of the module's sections"
    if reason:
        raise InputError(f"{image.module.file_name}: {SECTION} entry {number} {reason}")


def _callback_names(image: LinkedImage, section: int) -> dict[int, str]:
    symbols = image.module.symbols
    relocations = image.module.object.relocations_of(section)
    return {entry.offset: symbols[entry.symbol].name for entry in relocations if entry.offset % _ENTRY.size == 4}


def _name(image: LinkedImage, va: int) -> str:
    found = image.symbolize(va)
    return f"{found.name}+{found.offset:#x}" if found else f"{va:#x}"
