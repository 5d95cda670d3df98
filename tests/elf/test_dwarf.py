"""Source lines of relocatable objects, where every section starts at address 0."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.dwarf import SourceLine, SourceLines
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import InputError

from .elf_builder import NOP, ElfBuilder

ABBREVIATIONS = bytes([1, 0x11, 0, 0x10, 0x17, 0, 0, 0])  # a compile unit with DW_AT_stmt_list, nothing else


def line_program(*sequences: tuple[int, list[tuple[int, int]]]) -> tuple[bytes, list[int]]:
    """A DWARF 4 line table of (length, [(offset, line), ...]) sequences, and where their addresses go."""
    lengths = bytes([0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
    tables = b"dir\0\0" + b"el2.c\0\x01\0\0" + b"el1.c\0\0\0\0" + b"\0"
    prologue = bytes([4, 1, 1, 0xFB, 14, 13]) + lengths + tables
    header = struct.pack("<HI", 4, len(prologue)) + prologue
    program, holes = b"", []
    for number, (length, rows) in enumerate(sequences):
        holes.append(4 + len(header) + len(program) + 3)
        program += bytes([0, 9, 2]) + bytes(8) + bytes([4, number + 1])
        position, current = 0, 1
        for offset, line in rows:
            program += bytes([2, (offset - position) // 4]) if offset > position else b""
            program += bytes([3, line - current, 1])
            position, current = offset, line
        program += bytes([2, (length - position) // 4, 0, 1, 1])
    # minimum_instruction_length is 4, as in code for AArch64
    body = bytearray(header + program)
    body[6] = 4
    return struct.pack("<I", len(body)) + bytes(body), holes


def module_with_lines() -> ElfBuilder:
    elf = ElfBuilder()
    text, hyp = elf.text(".text", *[NOP] * 4), elf.text(".hyp.text", *[NOP] * 4, align=4096)
    table, holes = line_program((16, [(0, 10), (8, 12)]), (12, [(0, 20), (4, 25)]))
    unit = struct.pack("<HIB", 4, 0, 8) + bytes([1]) + bytes(4)
    elf.section(".debug_abbrev", ABBREVIATIONS, 0, 1)
    info = elf.section(".debug_info", struct.pack("<I", len(unit)) + unit, 0, 1)
    lines = elf.section(".debug_line", table, 0, 1)
    elf.rela(lines, (holes[0], 257, elf.section_symbol(hyp), 0), (holes[1], 257, elf.section_symbol(text), 4))
    elf.rela(info, (12, 258, elf.section_symbol(lines), 0))
    return elf


def test_lines_of_two_sections_are_kept_apart():
    module = ModuleFile.parse(module_with_lines().build(), "m.ko")
    lines = SourceLines(module)
    text, hyp = module.section(".text").index, module.section(".hyp.text").index
    assert [lines.lookup(hyp, offset) for offset in (0, 4, 8, 15)] == [
        SourceLine("dir/el2.c", 10), SourceLine("dir/el2.c", 10),
        SourceLine("dir/el2.c", 12), SourceLine("dir/el2.c", 12),
    ]  # fmt: skip
    assert [lines.lookup(text, offset) for offset in (0, 4, 8, 12)] == [
        None, SourceLine("el1.c", 20), SourceLine("el1.c", 25), SourceLine("el1.c", 25),
    ]  # fmt: skip


def test_beyond_the_end_of_a_sequence_there_is_no_line():
    module = ModuleFile.parse(module_with_lines().build(), "m.ko")
    assert SourceLines(module).lookup(module.section(".hyp.text").index, 16) is None


def test_stripped_module_has_no_lines():
    elf = ElfBuilder()
    elf.text(".text", NOP)
    assert SourceLines(ModuleFile.parse(elf.build(), "m.ko")).lookup(1, 0) is None


def test_unreadable_debug_information_is_an_input_error():
    elf = ElfBuilder()
    elf.text(".text", NOP)
    elf.section(".debug_abbrev", b"\x01", 0, 1)
    elf.section(".debug_info", b"\xff\xff\xff\x7f\x04\0", 0, 1)
    elf.section(".debug_line", b"\xff", 0, 1)
    with pytest.raises(InputError, match=r"m\.ko: its debug information cannot be read: ."):
        SourceLines(ModuleFile.parse(elf.build(), "m.ko")).lookup(1, 0)
