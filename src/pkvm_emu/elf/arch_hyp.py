"""Finding ``THIS_MODULE->arch.hyp``, which has no fixed place in ``struct module``.

Its offset depends on the kernel's configuration (0x240 to 0x3d8 in stock builds, anything with RANDSTRUCT). Two
independent ways lead to it: at the call of ``__pkvm_load_el2_module`` the one pointer into ``.hyp.text`` inside of
``struct module`` is ``arch.hyp.init``; and the module's own code refers to ``__this_module`` plus the offsets of the
members it uses.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pkvm_emu.elf.elements import Relocation, Section
from pkvm_emu.elf.instruction import branch_field
from pkvm_emu.elf.module_file import THIS_MODULE_SECTION, ModuleFile
from pkvm_emu.elf.relocation import R_AARCH64_ADD_ABS_LO12_NC, R_AARCH64_ADR_PREL_PG_HI21

_SCAN_WINDOW = 32
_MOV_WIDE = 0x12800000


@dataclass(frozen=True, slots=True)
class ArchHypEvidence:
    """Offsets in bytes inside of ``struct module`` that the code touches, each ascending and without repetition.

    ``references`` come from relocations against ``__this_module`` plus an addend; ``stores`` from 64-bit stores
    through a register that holds ``&__this_module``, which is how ``arch.hyp.init`` is set.
    """

    references: tuple[int, ...]
    stores: tuple[int, ...]

    def supports(self, arch_hyp: int, init_offset: int) -> bool:
        """Tell whether the code stores to ``arch.hyp.init``, ``init_offset`` bytes into ``arch.hyp``."""
        slot = arch_hyp + init_offset
        return slot in self.stores or slot in self.references


def find_init_slot(this_module: bytes, hyp_text: tuple[int, int]) -> int | None:
    """Find ``arch.hyp.init`` in the bytes of ``struct module`` at the time of ``__pkvm_load_el2_module``.

    Args:
        this_module: the structure as it is in memory.
        hyp_text: EL1 VA range [start, end) of ``.hyp.text``.

    Returns:
        The byte offset of the first aligned pointer into the range, or None.
    """
    start, end = hyp_text
    for number, (value,) in enumerate(struct.iter_unpack("<Q", this_module[: len(this_module) & ~7])):
        if start <= value < end:
            return 8 * number
    return None


def static_evidence(module: ModuleFile) -> ArchHypEvidence:
    """Collect what the module's EL1 code says about the members of ``struct module`` that it uses."""
    home = module.section(THIS_MODULE_SECTION)
    references: set[int] = set()
    stores: set[int] = set()
    for part in module.relocation_sections:
        section = module.sections[part.target]
        if not section.is_code:
            continue
        for entry in part.entries:
            offset = _this_module_offset(module, home, entry)
            if offset:
                references.add(offset)
            elif offset == 0 and entry.type == R_AARCH64_ADD_ABS_LO12_NC:
                stores.update(_stores_through(section, entry.offset))
    return ArchHypEvidence(tuple(sorted(references)), tuple(sorted(stores)))


def _this_module_offset(module: ModuleFile, home: Section | None, entry: Relocation) -> int | None:
    if entry.type < R_AARCH64_ADR_PREL_PG_HI21:
        return None
    symbol = module.symbols[entry.symbol]
    if symbol.name == "__this_module":
        return entry.addend
    if home is not None and symbol.shndx == home.index:
        return symbol.value + entry.addend
    return None


def _stores_through(section: Section, add_offset: int) -> list[int]:
    """Return the offsets stored to through the register that the ADD at ``add_offset`` sets to ``&__this_module``."""
    register = int.from_bytes(section.data[add_offset : add_offset + 4], "little") & 0x1F
    stores = []
    start = add_offset + 4
    for position in range(start, min(start + 4 * _SCAN_WINDOW, len(section.data) - 3), 4):
        word = int.from_bytes(section.data[position : position + 4], "little")
        if word & 0xFFC00000 == 0xF9000000:  # STR Xt, [Xn, #imm]
            if (word >> 5) & 0x1F == register:
                stores.append(((word >> 10) & 0xFFF) * 8)
        elif branch_field(word) is not None or word & 0xFE000000 == 0xD6000000 or _writes(word, register):
            break
    return stores


def _writes(word: int, register: int) -> bool:
    """Tell whether a data-processing or load instruction has ``register`` as its destination."""
    is_data_processing = word & 0x1C000000 == 0x10000000 or word & 0x0E000000 == 0x0A000000
    is_load = word & 0x3B400000 == 0x39400000 or word & _MOV_WIDE == _MOV_WIDE
    return (is_data_processing or is_load) and word & 0x1F == register
