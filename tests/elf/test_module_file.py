"""The facts of a module file."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.detect import detect_generation_name
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.signature import MAGIC
from pkvm_emu.errors import InputError

from .elf_builder import ABS, ALLOC, NOP, WEAK, ElfBuilder, module_builder, words


def parse(elf: ElfBuilder, name: str = "my-module.ko") -> ModuleFile:
    return ModuleFile.parse(elf.build(), name)


def signed(image: bytes, body: bytes, length: int | None = None) -> bytes:
    information = struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(body) if length is None else length)
    return image + body + information + MAGIC


def test_two_relocation_sections_of_one_name_apply_to_their_own_targets():
    module = parse(module_builder())
    parts = [part for part in module.relocation_sections if part.name == ".rela.text"]
    assert [module.sections[part.target].name for part in parts] == [".text", ".hyp.text"]
    assert [entry.type for entry in module.object.relocations_of(module.section(".hyp.text").index)] == [275, 286]


def test_signature_is_stripped_and_reported():
    image = module_builder().build()
    body = b"\x30\x82" + bytes.fromhex("0609608648016503040203") + b"DER"
    module = ModuleFile.parse(signed(image, body), "m.ko")
    assert module.debug_parts[0].data == image
    assert module.signature.id_type == "PKCS#7"
    assert module.signature.hash_name == "sha512"
    assert module.signature.signature == body
    assert module.signature.length == len(body) + 12 + len(MAGIC)


def test_unsigned_module_has_no_signature():
    assert parse(module_builder()).signature is None


@pytest.mark.parametrize("data", [signed(module_builder().build(), b"", 1 << 31), MAGIC])
def test_signature_that_does_not_fit_is_refused(data):
    with pytest.raises(InputError, match=r"signature .*(longer than the file|has no information block)"):
        ModuleFile.parse(data, "m.ko")


def with_modinfo(text: bytes) -> ModuleFile:
    elf = module_builder()
    elf.section(".modinfo", text, ALLOC, 1)
    return parse(elf)


def test_modinfo_keeps_every_value_in_order():
    module = with_modinfo(b"license=GPL\0alias=one\0\0alias=two\0name=foo\0depends=a,b\0vermagic=6.12.23-android16-5\0")
    assert module.modinfo["alias"] == ["one", "two"]
    assert (module.name, module.depends, module.vermagic) == ("foo", ["a", "b"], "6.12.23-android16-5")


def test_module_without_modinfo_is_named_after_its_file():
    module = parse(module_builder())
    assert (module.name, module.depends, module.vermagic) == ("my_module", [], "")


@pytest.mark.parametrize(
    ("vermagic", "name"),
    [
        ("5.15.110-android14-11-gabc SMP", "android14-5.15"),
        ("6.1.75-android14-11 SMP", "android14-6.1"),
        ("6.6.118-android15-8-o-g15bab650beb0-4k SMP preempt", "android15-6.6"),
        ("6.12.23-4k SMP", "android16-6.12"),
        ("5.15.41-android13-8 SMP", None),
        ("6.18.0 SMP", None),
        ("nonsense", None),
    ],
)
def test_generation_follows_vermagic(vermagic, name):
    found = detect_generation_name(with_modinfo(b"vermagic=" + vermagic.encode() + b"\0"))
    assert found.name == name
    assert f"'{vermagic.split(' ')[0]}'" in found.reason


@pytest.mark.parametrize(
    ("sections", "symbol", "name"),
    [
        ([".hyp.event_ids", ".hyp.patchable_function_entries"], "x", "android16-6.12"),
        ([".hyp.event_ids", ".hyp.printk_fmts"], "x", "android16-6.12"),
        ([".hyp.event_ids"], "x", "android15-6.6"),
        ([], "x", "android14-6.1"),
        ([], "cpu_hwcap_keys", "android14-5.15"),
    ],
)
def test_generation_without_vermagic_follows_the_sections(sections, symbol, name):
    elf = module_builder()
    for section in sections:
        elf.section(section)
    elf.symbol(symbol)
    assert detect_generation_name(parse(elf)).name == name


@pytest.mark.parametrize("size", [0, 1])
def test_presence_of_hyp_sections_proves_nothing(size):
    elf = ElfBuilder()
    elf.section(".hyp.text", bytes(size), ALLOC | 4, 4096)
    elf.section(".hyp.data", bytes(size), ALLOC, 4096)
    module = parse(elf)
    assert not module.has_el2
    assert module.hyp_sections == []
    assert detect_generation_name(module).name is None


def test_hyp_sections_are_the_non_empty_ones_in_file_order():
    elf = module_builder()
    elf.section(".hyp.rodata")
    elf.section(".hyp.printk_fmts", bytes(128))
    module = parse(elf)
    assert [section.name for section in module.hyp_sections] == [
        ".hyp.text", ".hyp.bss", ".hyp.data", ".hyp.reloc", ".hyp.printk_fmts",
    ]  # fmt: skip
    assert [section.name for section in module.hyp_mapped_sections] == [".hyp.text", ".hyp.bss", ".hyp.data"]


def test_init_and_exit_offsets_come_from_the_relocations_of_struct_module():
    elf = module_builder()
    exit_function = elf.function("cleanup_module", 1, 8)
    elf.rela(6, (0x3E0, 257, exit_function, 0))
    this_module = parse(elf).this_module
    assert (this_module.init_offset, this_module.exit_offset, this_module.section.size) == (0x178, 0x3E0, 1024)


def test_jump_table_cfi_init_function_is_recognised():
    elf = ElfBuilder()
    text = elf.text(".text", NOP)
    home = elf.section(".gnu.linkonce.this_module", bytes(512))
    elf.rela(home, (0x150, 257, elf.function("init_module.cfi_jt", text), 0))
    assert parse(elf).this_module.init_offset == 0x150


def test_raw_object_has_no_this_module():
    assert parse(ElfBuilder()).this_module is None


def test_undefined_symbols_name_their_first_use():
    elf = module_builder()
    elf.symbol("optional", bind=WEAK)
    found = parse(elf).undefined_symbols()
    assert [(symbol.name, symbol.is_weak) for symbol in found] == [("_printk", False), ("optional", True)]
    assert found[0].first_use.text == ".text+0x4 (init_module+0x4)"
    assert found[1].first_use is None


def test_exports_come_from_the_symbol_table_of_the_kernel():
    elf = module_builder()
    table = elf.section("__ksymtab", bytes(12), align=4)
    gpl = elf.section("__ksymtab_gpl", bytes(24), align=4)
    elf.section("__kcrctab", struct.pack("<I", 0xABCD1234), align=4)
    strings = elf.section("__ksymtab_strings", b"init_module\0", align=1)
    anonymous, name = elf.section_symbol(1), elf.section_symbol(strings)
    elf.rela(table, (0, 261, 1, 0), (4, 261, name, 0))
    elf.rela(gpl, (0, 261, anonymous, 0), (4, 261, name, 0), (12, 261, 3, 0))
    exports = parse(elf).exports
    assert [(part.name, part.gpl_only, part.crc) for part in exports] == [
        ("init_module", False, 0xABCD1234),
        ("init_module", True, None),
        ("__kvm_nvhe_hyp_init", True, None),
    ]


def test_versions_of_exports_may_be_relocations():
    # Up to 5.18: an absolute symbol whose value is the version, or a word that holds it.
    elf = module_builder()
    table = elf.section("__ksymtab", bytes(36), align=4)
    crcs = elf.section("__kcrctab", bytes(12), align=4)
    word = elf.section("___kcrc", struct.pack("<II", 0, 0x22222222), align=4)
    strings = elf.section("__ksymtab_strings", b"init_module\0", align=1)
    name, absolute = elf.section_symbol(strings), elf.symbol("__crc_init_module", ABS, 0x11111111)
    elf.rela(table, (0, 261, 1, 0), (4, 261, name, 0), (12, 261, 1, 0), (24, 261, 1, 0))
    elf.rela(
        crcs, (0, 258, absolute, 0), (4, 261, elf.section_symbol(word), 4), (8, 258, elf.symbol("__crc_nobody"), 0)
    )
    assert [part.crc for part in parse(elf).exports] == [0x11111111, 0x22222222, None]


def test_exports_tell_their_namespaces():
    elf = module_builder()
    table = elf.section("__ksymtab", bytes(24), align=4)
    strings = elf.section("__ksymtab_strings", b"init_module\0SPACE\0\0", align=1)
    name = elf.section_symbol(strings)
    elf.rela(table, (0, 261, 1, 0), (4, 261, name, 0), (8, 261, name, 12), (12, 261, 1, 0), (20, 261, name, 18))
    assert [part.namespace for part in parse(elf).exports] == ["SPACE", ""]
    raw = module_builder()
    record = raw.section(".export_symbol", b"GPL\0SPACE\0\0\0\0\0\0\0" + bytes(8))
    raw.symbol("__export_symbol_init_module", record)
    assert [part.namespace for part in parse(raw).exports] == ["SPACE"]


def test_exports_of_a_raw_object_come_from_its_export_records():
    elf = module_builder()
    record = elf.section(".export_symbol", b"GPL\0\0\0\0\0" + bytes(8))
    elf.symbol("__export_symbol_init_module", record)
    assert [(part.name, part.gpl_only) for part in parse(elf).exports] == [("init_module", True)]


def test_versions_are_read_in_both_forms():
    old = module_builder()
    old.section("__versions", struct.pack("<Q56sQ56s", 0x11, b"module_layout", 0x22, b"_printk"))
    new = module_builder()
    new.section("__version_ext_crcs", struct.pack("<II", 0x11, 0x22))
    new.section("__version_ext_names", b"module_layout\0_printk\0")
    assert parse(old).versions == parse(new).versions == {"module_layout": 0x11, "_printk": 0x22}
    assert parse(module_builder()).versions == {}


@pytest.mark.parametrize(
    ("el1", "el2", "expected"),
    [
        (0x6FBB3035, 0xF175F853, ("normalised", "normalised")),
        (0x36B1C5A6, 0xC382D712, ("plain", "plain")),
        (0x36B1C5A6, NOP, ("plain", None)),
        (NOP, NOP, (None, None)),
    ],
)
def test_kcfi_ids_are_read_from_the_words_before_the_functions(el1, el2, expected):
    elf = ElfBuilder()
    text = elf.section(".text", words(el1, NOP), ALLOC | 4)
    hyp = elf.section(".hyp.text", words(NOP, el2, NOP), ALLOC | 4)
    elf.function("init_module", text, 4)
    elf.function("__kvm_nvhe_first", hyp, 0)
    elf.function("__kvm_nvhe_init", hyp, 8)
    elf.symbol("__kcfi_typeid___kvm_nvhe_init", ABS, 0xF175F853, bind=WEAK)
    facts = parse(elf).kcfi
    assert (facts.el1, facts.el2) == expected
    assert facts.el2_init == ("__kvm_nvhe_init" if expected[1] else None)
    assert facts.type_ids == {"__kvm_nvhe_init": 0xF175F853}


def test_function_at_the_start_of_its_section_has_no_kcfi_id():
    assert parse(module_builder()).kcfi.el1 is None
