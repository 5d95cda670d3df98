"""Hypervisor relocations move pointers from EL1 to EL2 addresses."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf import hyprel
from pkvm_emu.elf.instruction import IMM26
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import HypImport, LinkedImage, link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.relocation import RelocationError
from pkvm_emu.errors import InputError

from .elf_builder import ALLOC, EXEC, NOP, WRITE, ElfBuilder, module_builder

BASE = 0xFFFF_FFC0_0000_0000
HYP = 0x7F_F000_0000


def linked(elf: ElfBuilder) -> LinkedImage:
    module = ModuleFile.parse(elf.build(), "m.ko")
    return link(module, Layout.assign(module, BASE), lambda name: BASE)


def test_slot_is_rebased_by_the_distance_of_the_two_addresses():
    image = linked(module_builder())
    slot = image.symbol_va("__kvm_nvhe_value")
    assert hyprel.hyp_relocation_slots(image) == [slot]
    before = image.read_int(slot, 8)
    assert hyprel.apply(image, image.layout.hyp_base, HYP) == 1
    assert image.read_int(slot, 8) == before - image.layout.hyp_base + HYP == HYP + 4


def test_everything_but_the_slots_stays():
    image = linked(module_builder())
    slot = image.symbol_va("__kvm_nvhe_value") - BASE
    before = bytes(image.memory)
    hyprel.apply(image, image.layout.hyp_base, HYP)
    assert image.memory[:slot] == before[:slot]
    assert image.memory[slot + 8 :] == before[slot + 8 :]


def hyp_module(offsets: bytes, flags: int = ALLOC) -> LinkedImage:
    elf = ElfBuilder()
    elf.text(".hyp.text", *[NOP] * 2, align=4096)
    elf.section(".hyp.data", bytes(16), ALLOC | WRITE, 4096)
    elf.section(".hyp.reloc", offsets, flags, 4)
    return linked(elf)


def test_empty_table_has_no_slots():
    assert hyprel.hyp_relocation_slots(hyp_module(b"")) == []


@pytest.mark.parametrize("offset", [0, 0x7FFF_FFFF, -0x8000_0000])
def test_slot_outside_of_the_mapped_sections_is_refused(offset):
    with pytest.raises(
        InputError, match=r"m\.ko: \.hyp\.reloc entry 0 names 0x[0-9a-f]+, which is not in a section mapped at EL2"
    ):
        hyprel.apply(hyp_module(struct.pack("<i", offset)), BASE, HYP)


def test_slot_that_straddles_the_end_of_its_section_is_refused():
    image = hyp_module(bytes(4))
    distance = image.section_va(".hyp.data") + 12 - image.section_va(".hyp.reloc")
    with pytest.raises(InputError, match="not in a section mapped at EL2"):
        hyprel.hyp_relocation_slots(hyp_module(struct.pack("<i", distance)))


def test_el2_module_without_the_table_is_refused():
    elf = ElfBuilder()
    elf.section(".hyp.text", bytes(8), ALLOC | EXEC, 4096)
    with pytest.raises(InputError, match=r"has \.hyp\.text but no \.hyp\.reloc section"):
        hyprel.hyp_relocation_slots(linked(elf))


def test_a_table_that_is_not_loaded_is_refused():
    with pytest.raises(InputError, match=r"m\.ko: \.hyp\.reloc has entries and is not loaded"):
        hyprel.hyp_relocation_slots(hyp_module(bytes(4), flags=0))


def test_module_without_el2_code_needs_no_table():
    elf = ElfBuilder()
    elf.text(".text", NOP)
    assert hyprel.hyp_relocation_slots(linked(elf)) == []


def test_imported_call_is_patched_for_el2_addresses():
    word = hyprel.hyp_import_word(0x94000000, HypImport(BASE, "f", BASE, 283), HYP + 0x1000, HYP - 0x40)
    assert (word >> 26, IMM26.decode(word) * 4) == (0x25, -0x1040)
    with pytest.raises(RelocationError, match=r"EL2 call of f .* beyond ±128 MiB"):
        hyprel.hyp_import_word(0x94000000, HypImport(BASE, "f", BASE, 283), HYP, HYP + 0x800_0000)
