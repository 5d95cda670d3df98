"""The bug table tells which brk is a WARN or a BUG, and of which line."""

from __future__ import annotations

import struct

from pkvm_emu.elf.bugtable import bug_table
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import LinkedImage, link
from pkvm_emu.elf.module_file import ModuleFile

from .elf_builder import ALLOC, WRITE, ElfBuilder

BASE = 0xFFFF_FFC0_0000_0000
BRK = 0xD4210000


def linked(elf: ElfBuilder) -> LinkedImage:
    module = ModuleFile.parse(elf.build(), "m.ko")
    return link(module, Layout.assign(module, BASE), lambda name: None)


def test_entries_name_file_line_and_kind():
    elf = ElfBuilder()
    text = elf.text(".text", BRK, BRK)
    names = elf.section(".rodata.str", b"x\0drivers/misc/foo.c\0", align=1)
    table = elf.section("__bug_table", struct.pack("<iiHHiiHH", 0, 0, 123, 3, 0, 0, 7, 0), ALLOC | WRITE)
    code, strings = elf.section_symbol(text), elf.section_symbol(names)
    elf.rela(table, (0, 261, code, 0), (4, 261, strings, 2), (12, 261, code, 4), (16, 261, strings, 2))
    entries = bug_table(linked(elf))
    assert entries == {
        BASE: (BASE, "drivers/misc/foo.c", 123, True, True),
        BASE + 4: (BASE + 4, "drivers/misc/foo.c", 7, False, False),
    }


def test_entries_outside_of_the_module_are_left_out_and_a_missing_file_is_none():
    elf = ElfBuilder()
    elf.text(".text", BRK)
    table = elf.section("__bug_table", struct.pack("<iiHHiiHH", 1 << 20, 0, 1, 0, 0, 0, 9, 0), ALLOC | WRITE)
    elf.rela(table, (12, 261, elf.section_symbol(1), 0))
    assert bug_table(linked(elf)) == {BASE: (BASE, None, 9, False, False)}


def test_module_without_a_table_has_no_entries():
    elf = ElfBuilder()
    elf.text(".text", BRK)
    assert bug_table(linked(elf)) == {}
