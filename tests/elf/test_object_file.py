"""What is not a sound AArch64 relocatable object is refused with one line that says why."""

from __future__ import annotations

import random
import struct

import pytest

from pkvm_emu.elf import hyprel
from pkvm_emu.elf.alternatives import apply_alternatives
from pkvm_emu.elf.arch_hyp import static_evidence
from pkvm_emu.elf.bugtable import bug_table
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.static_keys import apply_static_key, static_keys
from pkvm_emu.errors import InputError

from .elf_builder import ALLOC, COMMON, NOBITS, REL, ElfBuilder, module_builder

BASE = 0xFFFF_FFC0_0000_0000
GOOD = module_builder().build()
HEADERS = struct.unpack_from("<Q", GOOD, 40)[0]
COUNT = struct.unpack_from("<H", GOOD, 60)[0]
SYMTAB = COUNT - 3


def patched(offset: int, layout: str, *values) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


def header(section: int, member: str) -> int:
    members = {
        "name": 0,
        "type": 4,
        "flags": 8,
        "offset": 24,
        "size": 32,
        "link": 40,
        "info": 44,
        "align": 48,
        "entsize": 56,
    }
    return HEADERS + 64 * section + members[member]


def section_field(section: int, member: str, value: int) -> bytes:
    layout = "<I" if member in ("name", "type", "link", "info") else "<Q"
    return patched(header(section, member), layout, value)


def symbol_field(number: int, offset: int, layout: str, value: int) -> bytes:
    table = struct.unpack_from("<Q", GOOD, header(SYMTAB, "offset"))[0]
    return patched(table + 24 * number + offset, layout, value)


RELA_TEXT = 7  # the first section behind the six of module_builder
RELA_ENTRIES = struct.unpack_from("<Q", GOOD, header(RELA_TEXT, "offset"))[0]

BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello world", "not an ELF file; give an AArch64 .ko or .o"),
    "gzip": (b"\x1f\x8b\x08\0", "not an ELF file; it is gzip-compressed: decompress it first"),
    "bitcode": (b"BC\xc0\xde", "not an ELF file; it is LLVM bitcode"),
    "short": (GOOD[:40], "truncated: the ELF header takes 64 bytes, the file has 40"),
    "32-bit": (patched(4, "B", 1), "a 32-bit ELF file; a 64-bit AArch64 module is needed"),
    "big-endian": (patched(5, "B", 2), "a big-endian ELF file"),
    "x86-64": (patched(18, "<H", 62), "built for x86-64; an AArch64 module is needed"),
    "unknown machine": (patched(18, "<H", 4711), "built for machine 4711"),
    "executable": (patched(16, "<H", 2), "not a relocatable object (ET_REL) but an executable (ET_EXEC)"),
    "shared": (patched(16, "<H", 3), "not a relocatable object (ET_REL) but a shared object (ET_DYN)"),
    "no sections": (patched(60, "<H", 0), "has no section header table"),
    "header size": (patched(58, "<H", 40), "section headers of 40 bytes, 64 expected"),
    "cut": (GOOD[:-1], "truncated: the section header table reaches to byte"),
    "section data": (section_field(1, "offset", len(GOOD)), "truncated: section 1 (.text) reaches to byte"),
    "huge": (section_field(3, "size", 1 << 40), "take 1048576 MiB, the limit is 256 MiB"),
    "alignment": (section_field(1, "align", 3), "section 1 (.text) asks for an impossible alignment of 0x3"),
    "large alignment": (section_field(1, "align", 1 << 40), "impossible alignment"),
    "name table": (section_field(COUNT - 1, "size", 1 << 30), "truncated: the section name table reaches to byte"),
    "name table number": (patched(62, "<H", 999), "section name table number 999 is out of range"),
    "name table type": (patched(62, "<H", 1), "section 1 should hold the section names but is not a string table"),
    "name offset": (section_field(1, "name", 1 << 20), "the name of section 1 lies at 0x100000 beyond its"),
    "overlap": (
        section_field(4, "offset", struct.unpack_from("<Q", GOOD, header(1, "offset"))[0]),
        "section 1 (.text) and section 4 (.hyp.data) overlap at file offset",
    ),
    "no symbols": (section_field(SYMTAB, "type", 1), "has no symbol table (stripped?)"),
    "two symbol tables": (section_field(1, "type", 2), "has 2 symbol tables (sections 1 and"),
    "symbol strings": (section_field(SYMTAB, "link", 1), "(.symtab): sh_link 1 does not name a string table"),
    "symbol entry": (section_field(SYMTAB, "entsize", 16), "is not whole entries"),
    "first global": (section_field(SYMTAB, "info", 1000), "sh_info 1000 is beyond its last symbol"),
    "symbol section": (symbol_field(1, 6, "<H", 77), "symbol 1 lies in section 77, the file has sections 0..14"),
    "symbol reserved": (symbol_field(1, 6, "<H", 0xFFFF), "unsupported special section index 0xffff"),
    "symbol name": (symbol_field(1, 0, "<I", 1 << 20), "the name of symbol 1 lies at 0x100000 beyond its string table"),
    "relocation target": (section_field(RELA_TEXT, "info", 99), "(.rela.text): sh_info 99 does not name a section"),
    "relocation symbols": (section_field(RELA_TEXT, "link", 1), ": sh_link 1 does not name the symbol table"),
    "relocation size": (section_field(RELA_TEXT, "size", 23), "(.rela.text): 23 bytes are not whole RELA entries"),
    "relocation kind": (section_field(RELA_TEXT, "type", REL), "REL relocations, AArch64 modules have RELA only"),
    "relocation symbol": (patched(RELA_ENTRIES + 12, "<I", 99), "entry 0 names symbol 99, the file has symbols 0..5"),
    "relocation offset": (patched(RELA_ENTRIES, "<Q", 400), "entry 0 patches .text+0x190, the section has 0xc bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_object_is_refused_with_one_line(case):
    data, message = BAD[case]
    with pytest.raises(InputError) as error:
        ModuleFile.parse(data, "bad.ko")
    assert str(error.value).startswith("bad.ko: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_object_that_the_cases_break_is_sound():
    module = ModuleFile.parse(GOOD, "good.ko")
    assert [section.name for section in module.sections[1:3]] == [".text", ".hyp.text"]
    assert module.symbols[1].name == "init_module"


def test_common_symbols_are_refused_as_the_kernel_does():
    elf = module_builder()
    elf.symbol("shared_buffer", COMMON, 8, 64)
    module = ModuleFile.parse(elf.build(), "m.ko")
    with pytest.raises(InputError, match="shared_buffer is a common symbol; compile the module with -fno-common"):
        link(module, Layout.assign(module, 0), lambda name: 0)


def test_zero_filled_sections_count_towards_the_memory_limit():
    elf = ElfBuilder()
    for number in range(3):
        elf.bss(f".bss{number}", 100 << 20)
    with pytest.raises(InputError, match="take 300 MiB, the limit is 256 MiB"):
        ModuleFile.parse(elf.build(), "m.ko")


def test_alignment_cannot_inflate_a_module_beyond_the_limit():
    elf = ElfBuilder()
    for number in range(200):
        elf.section(f".data{number}", b"x", ALLOC, 1 << 21)
    module = ModuleFile.parse(elf.build(), "m.ko")
    with pytest.raises(InputError, match="takes more than 256 MiB of memory"):
        Layout.assign(module, 0)


def test_names_that_share_bytes_cannot_exhaust_memory():
    elf = ElfBuilder()
    elf.symbol("x" * 4000)
    for _ in range(20000):
        elf.symbol("")
    data = bytearray(elf.build())
    headers, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    table = struct.unpack_from("<Q", data, headers + 64 * (count - 3) + 24)[0]
    for number in range(2, 20002):
        struct.pack_into("<I", data, table + 24 * number, 1)
    with pytest.raises(InputError, match="section and symbol names take more than 32 MiB"):
        ModuleFile.parse(bytes(data), "m.ko")


def test_a_zero_filled_section_may_lie_anywhere_in_the_file():
    data = bytearray(GOOD)
    bss = next(n for n in range(COUNT) if struct.unpack_from("<I", GOOD, header(n, "type"))[0] == NOBITS)
    struct.pack_into("<Q", data, header(bss, "offset"), 1 << 60)
    assert ModuleFile.parse(bytes(data), "m.ko").sections[bss].data == b""


@pytest.mark.parametrize("path", ["missing.ko", "."])
def test_unreadable_file_is_an_input_error(tmp_path, path):
    with pytest.raises(InputError, match=r"cannot be read: No such file|not a regular file"):
        ModuleFile.load(tmp_path / path)


def load_and_link(data: bytes) -> None:
    """Everything that reads a module file, on ``data``."""
    module = ModuleFile.parse(data, "m.ko")
    layout = Layout.assign(module, BASE)
    image = link(module, layout, lambda name: BASE + 0x4000_0000)
    assert len(image.memory) == layout.size <= 256 << 20
    repr((module.modinfo, module.exports, module.versions, module.kcfi, module.this_module, static_evidence(module)))
    module.undefined_symbols()
    bug_table(image)
    apply_alternatives(image, lambda capability: True)
    for key in static_keys(image):
        apply_static_key(image, key.key, True)
    hyprel.apply(image, layout.hyp_base, 0x10_0000_0000)


def full_module() -> bytes:
    """A module with every table that this layer reads."""
    elf = module_builder()
    text, code = 1, elf.section_symbol(1)
    names = elf.section(".rodata.str", b"file.c\0", ALLOC, 1)
    strings = elf.section_symbol(names)
    alternatives = elf.section(".altinstructions", struct.pack("<iiHBB", 0, 0, 51, 4, 4))
    bugs = elf.section("__bug_table", struct.pack("<iiHH", 0, 0, 12, 1))
    keys = elf.section("__jump_table", bytes(16))
    exports = elf.section("__ksymtab", bytes(12), align=4)
    elf.section("__versions", struct.pack("<Q56s", 1, b"_printk"))
    elf.section(".modinfo", b"vermagic=6.6.1-android15-1 SMP\0name=m\0", ALLOC, 1)
    elf.rela(alternatives, (0, 261, code, 0), (4, 261, code, 8))
    elf.rela(bugs, (0, 261, code, 0), (4, 261, strings, 0))
    elf.rela(keys, (0, 261, code, 0), (4, 261, code, 8), (8, 260, elf.symbol("key"), 0))
    elf.rela(exports, (0, 261, elf.function("exported", text, 8), 0), (4, 261, strings, 0))
    return elf.build()


FULL = full_module()
# Tables and headers are a small part of the file; bytes of the page-sized sections would swallow most changes.
INTERESTING = [place for place in range(len(FULL)) if place < 0x60 or FULL[place] or any(FULL[place - 8 : place + 8])]


def test_the_module_that_is_corrupted_is_sound():
    load_and_link(FULL)


@pytest.mark.parametrize("length", [*range(70), *range(64, len(FULL), 211)])
def test_truncated_module_is_refused(length):
    with pytest.raises(InputError):
        load_and_link(FULL[:length])


@pytest.mark.parametrize("seed", range(500))
def test_corrupted_module_is_refused_in_one_line_or_loads(seed):
    generator = random.Random(seed)
    data = bytearray(FULL)
    for _ in range(generator.choice((1, 1, 2, 4))):
        data[generator.choice(INTERESTING)] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
    message = ""
    try:
        load_and_link(bytes(data))
    except InputError as error:
        message = str(error)
    assert "\n" not in message
