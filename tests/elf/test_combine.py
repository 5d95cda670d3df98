"""A module out of its two raw objects behaves as the linked one."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf import hyprel
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import LinkedImage, link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError

from .elf_builder import ALLOC, EXEC, LOCAL, NOP, OBJECT, WEAK, WRITE, ElfBuilder

BASE = 0xFFFF_FFC0_0000_0000
HYP = 0x10_0000_0000


def el1_object(*, init: bool = True) -> ElfBuilder:
    elf = ElfBuilder()
    text = elf.text(".init.text", NOP, NOP)
    data = elf.section(".data", bytes(16), ALLOC | WRITE)
    if init:
        elf.function("init_module", text, 0, 8)
    elf.rela(data, (0, 257, elf.symbol("__kvm_nvhe_hyp_init"), 0), (8, 257, elf.symbol("__this_module"), 0x10))
    return elf


def el2_object() -> ElfBuilder:
    """What objcopy leaves: .hyp sections, prefixed symbols, .hyp.reloc."""
    elf = ElfBuilder()
    text = elf.text(".hyp.text", NOP, NOP, NOP, align=4)
    data = elf.section(".hyp.data", bytes(16), ALLOC | WRITE)
    table = elf.section(".hyp.reloc", bytes(4), align=4)
    elf.function("__kvm_nvhe_hyp_init", text, 4, 8)
    base = elf.section_symbol(data)
    elf.rela(data, (8, 257, elf.section_symbol(text), 8))
    elf.rela(table, (0, 261, base, 8))
    return elf


def compiled_el2_object() -> ElfBuilder:
    """What the compiler leaves: several plain sections, plain names, no .hyp.reloc."""
    elf = ElfBuilder()
    elf.text(".text", NOP)
    text = elf.text(".text.hyp_init", NOP, NOP)
    strings = elf.section(".rodata.str1.1", b"a\0b\0", align=1)
    data = elf.section(".data", struct.pack("<QQ", 1, 2), ALLOC | WRITE)
    more = elf.section(".data..ro_after_init", bytes(8), ALLOC | WRITE)
    elf.bss(".bss", 24)
    elf.function("hyp_init", text, 0, 8)
    elf.symbol("counter", 6, 8, 8, type=OBJECT)
    elf.symbol("$x", text, bind=LOCAL)
    elf.rela(data, (8, 257, elf.section_symbol(strings), 2))
    elf.rela(more, (0, 257, elf.section_symbol(data), 8))
    return elf


def combine(el1: ElfBuilder, el2: ElfBuilder) -> ModuleFile:
    return ModuleFile.from_objects(el1.build(), el2.build(), "foo.ko")


def linked(module: ModuleFile) -> LinkedImage:
    return link(module, Layout.assign(module, BASE), lambda name: None)


def test_references_across_the_halves_are_resolved():
    image = linked(combine(el1_object(), el2_object()))
    assert image.unresolved == []
    hyp_init = image.section_va(".hyp.text") + 4
    assert image.symbol_va("__kvm_nvhe_hyp_init") == hyp_init
    assert image.read_int(image.section_va(".data"), 8) == hyp_init


def test_struct_module_is_synthesised_with_its_references():
    module = combine(el1_object(), el2_object())
    image = linked(module)
    home = image.section_va(".gnu.linkonce.this_module")
    assert image.read_int(home + module.this_module.init_offset, 8) == image.symbol_va("init_module")
    assert module.this_module.exit_offset is None
    assert image.read_int(image.section_va(".data") + 8, 8) == home + 0x10


def test_existing_struct_module_is_kept():
    el1 = el1_object()
    home = el1.section(".gnu.linkonce.this_module", bytes(1024), ALLOC | WRITE, 64)
    el1.rela(home, (0x150, 257, 1, 0))
    assert combine(el1, el2_object()).this_module[1:] == (0x150, None)


def test_hyp_relocations_of_a_linked_object_are_kept():
    image = linked(combine(el1_object(), el2_object()))
    assert hyprel.hyp_relocation_slots(image) == [image.section_va(".hyp.data") + 8]


def test_compiled_object_is_joined_prefixed_and_scanned_for_pointers():
    module = combine(el1_object(), compiled_el2_object())
    image = linked(module)
    assert [section.name for section in module.hyp_sections] == [
        ".hyp.text", ".hyp.rodata", ".hyp.data", ".hyp.bss", ".hyp.reloc",
    ]  # fmt: skip
    text, rodata = image.section_va(".hyp.text"), image.section_va(".hyp.rodata")
    data, bss = image.section_va(".hyp.data"), image.section_va(".hyp.bss")
    assert image.symbol_va("__kvm_nvhe_hyp_init") == text + 4
    assert image.symbol_va("__kvm_nvhe_counter") == bss + 8
    assert struct.unpack("<QQQ", image.read(data, 24)) == (1, rodata + 2, data + 8)
    assert hyprel.hyp_relocation_slots(image) == [data + 8, data + 16]
    hyprel.apply(image, image.layout.hyp_base, HYP)
    assert image.read_int(data + 16, 8) == data + 8 - image.layout.hyp_base + HYP


def test_event_records_are_joined_in_name_order():
    el1 = el1_object()
    for name in (b"b", b"a"):
        el1.section(f"_hyp_events.{name.decode()}", name * 72, ALLOC | WRITE)
    module = combine(el1, el2_object())
    assert module.section("_hyp_events").data == b"a" * 72 + b"b" * 72


def test_event_ids_are_joined_in_name_order_with_the_printk_offsets_last():
    el2 = el2_object()
    el2.section(".hyp.printk_fmt_offset", b"\x07", ALLOC | WRITE, 1)
    for name in ("late", "early"):
        section = el2.section(f".hyp.event_ids.{name}", bytes(16), ALLOC | WRITE)
        el2.symbol(f"__kvm_nvhe_hyp_event_id_{name}", section, 0, 16, type=OBJECT)
    el2.section(".hyp.printk_fmts", bytes(128), ALLOC | WRITE, 1)
    end = el2.symbol("__kvm_nvhe___hyp_printk_fmts_end")
    el2.rela(2, (0, 257, end, 0))
    image = linked(combine(el1_object(), el2))
    home = image.section_va(".hyp.event_ids")
    assert image.symbol_va("__kvm_nvhe_hyp_event_id_early") == home
    assert image.symbol_va("__kvm_nvhe_hyp_event_id_late") == home + 16
    assert image.read(home, 33) == bytes(32) + b"\x07"
    assert image.read_int(image.section_va(".hyp.data"), 8) == image.section_va(".hyp.printk_fmts") + 128


def test_weak_definition_gives_way_to_a_strong_one():
    el1, el2 = el1_object(), el2_object()
    el1.symbol("shared", 2, 0, 8, WEAK, OBJECT)
    el2.symbol("shared", 2, 8, 8, type=OBJECT)
    image = linked(combine(el1, el2))
    assert image.symbol_va("shared") == image.section_va(".hyp.data") + 8


def test_symbol_defined_twice_is_refused():
    el1 = el1_object()
    el1.function("__kvm_nvhe_other", 1)
    el2 = el2_object()
    el2.function("__kvm_nvhe_other", 1)
    with pytest.raises(InputError, match=r"foo\.ko: __kvm_nvhe_other is defined in both objects"):
        combine(el1, el2)


def test_el1_object_without_init_module_is_refused():
    with pytest.raises(InputError, match=r"foo\.ko: the EL1 object defines no init_module"):
        combine(el1_object(init=False), el2_object())


def test_el2_object_without_code_is_refused():
    empty = ElfBuilder()
    empty.section(".data", bytes(8), ALLOC | WRITE)
    with pytest.raises(InputError, match=r"foo\.ko \(EL2 object\): has no EL2 code in \.hyp\.text or \.text"):
        combine(el1_object(), empty)


def test_unsound_half_is_named():
    with pytest.raises(InputError, match=r"foo\.ko \(EL2 object\): not an ELF file"):
        ModuleFile.from_objects(el1_object().build(), b"nonsense", "foo.ko")


def test_swapped_objects_are_noticed():
    elf = ElfBuilder()
    elf.section(".hyp.text", bytes(8), ALLOC | EXEC)
    elf.function("__kvm_nvhe_hyp_init", 1)
    with pytest.raises(InputError, match="no init_module"):
        ModuleFile.from_objects(elf.build(), el2_object().build().replace(b"hyp_init", b"hyp_exit"), "foo.ko")
