"""Hypervisor relocations: pointers in EL2 data, rebased from EL1 to EL2 addresses when the module is loaded.

``.hyp.reloc`` is an array of s32. Entry i at address A names the slot A + *A, a u64 that holds (after the ordinary
relocations) an EL1 VA of the module; the loader adds (hyp base - EL1 base) to it, whatever it points to.
Source: arch/arm64/kernel/module.c and arch/arm64/kvm/pkvm.c; the same on all branches.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pkvm_emu.elf.elements import MASK64
from pkvm_emu.elf.instruction import IMM26
from pkvm_emu.elf.link import HypImport, LinkedImage
from pkvm_emu.elf.relocation import RelocationError
from pkvm_emu.errors import InputError

SECTION = ".hyp.reloc"
_SLOT_SIZE = 8
_BRANCH_RANGE = 1 << 27


def hyp_relocation_slots(image: LinkedImage) -> list[int]:
    """Return the EL1 VA of every u64 that has to be rebased, in table order.

    Raises:
        InputError: an EL2 module without ``.hyp.reloc`` (the kernel returns -ENOEXEC), or an entry that names something
            outside of the sections mapped at EL2.
    """
    module = image.module
    if not module.has_el2:
        return []
    section = module.section(SECTION)
    if section is None:
        raise InputError(f"{module.file_name}: has {module.hyp_sections[0].name} but no {SECTION} section (-ENOEXEC)")
    if not section.size:
        return []
    if section.index not in image.layout.placements:
        raise InputError(f"{module.file_name}: {SECTION} has entries and is not loaded (its SHF_ALLOC flag is missing)")
    table = image.layout.placements[section.index]
    mapped = {part.index for part in module.hyp_mapped_sections}
    slots = []
    offsets = struct.iter_unpack("<i", image.read(table, section.size & ~3))
    for number, (offset,) in enumerate(offsets):
        va = table + 4 * number + offset
        home = image.section_at(va, _SLOT_SIZE)
        if home is None or home.index not in mapped:
            raise InputError(
                f"{module.file_name}: {SECTION} entry {number} names {va:#x}, which is not in a section mapped at EL2"
            )
        slots.append(va)
    return slots


def apply(image: LinkedImage, kernel_base: int, hyp_base: int) -> int:
    """Rebase the slots of ``image`` in place and return how many there are.

    Args:
        image: the linked module.
        kernel_base: EL1 VA that ``hyp_base`` corresponds to, i.e. the start of the lowest EL2 section.
        hyp_base: EL2 VA of the same byte.

    Raises:
        InputError: as for ``hyp_relocation_slots``.
    """
    slots = hyp_relocation_slots(image)
    rebase(
        slots,
        lambda va: image.read_int(va, _SLOT_SIZE),
        lambda va, value: image.write(va, value.to_bytes(_SLOT_SIZE, "little")),
        hyp_base - kernel_base,
    )
    return len(slots)


def rebase(slots: list[int], read: Callable[[int], int], write: Callable[[int, int], None], delta: int) -> None:
    """Add ``delta`` bytes to the u64 at each of ``slots``, through the given accessors (e.g. of guest memory)."""
    for va in slots:
        write(va, (read(va) + delta) & MASK64)


def hyp_import_word(word: int, entry: HypImport, place: int, target: int) -> int:
    """Return the branch ``word`` of an EL2 import with its offset set for EL2 addresses.

    Args:
        word: the instruction at the call site, a ``bl`` or ``b``.
        entry: the import, for messages.
        place: EL2 VA of the call site.
        target: EL2 VA of the function.

    Raises:
        RelocationError: the function is beyond ±128 MiB.
    """
    distance = target - place
    if distance & 3 or not -_BRANCH_RANGE <= distance < _BRANCH_RANGE:
        raise RelocationError(f"EL2 call of {entry.name} at {place:#x}: target is {distance:#x} away, beyond ±128 MiB")
    return IMM26.encode(word, distance >> 2)
