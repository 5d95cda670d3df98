"""The shape of a finished module, generation by generation: sections, symbols, relocations, type ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_module import Module
from module_trees import EL1_C, EL2_C, WriteTree, kbuild_files

from pkvm_emu.build.builder import build_module

PAGE = 4096
HYP_SECTIONS = {
    "android14-6.1": [".hyp.text", ".hyp.bss", ".hyp.rodata", ".hyp.data", ".hyp.reloc"],
    "android15-6.6": [".hyp.text", ".hyp.bss", ".hyp.rodata", ".hyp.event_ids", ".hyp.data", ".hyp.reloc"],
    "android16-6.12": [
        ".hyp.text",
        ".hyp.bss",
        ".hyp.rodata",
        ".hyp.event_ids",
        ".hyp.patchable_function_entries",
        ".hyp.data",
        ".hyp.reloc",
    ],
}
GENERATIONS = list(HYP_SECTIONS)


@pytest.fixture
def build(sample: Path, tmp_path: Path):
    def run(generation: str = "android16-6.12", **options) -> Module:
        return Module(build_module(sample, tmp_path / f"{generation}.ko", generation, **options).path)

    return run


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_el2_sections_come_in_the_order_of_the_generation(build, generation: str) -> None:
    module = build(generation)
    assert [name for name in module.names() if name in HYP_SECTIONS["android16-6.12"]] == HYP_SECTIONS[generation]
    assert module.names().index(".init.eh_frame") + 1 == module.names().index(".hyp.text")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_el2_sections_are_page_aligned_and_padded_to_pages_and_empty_ones_have_size_0(build, generation: str) -> None:
    module = build(generation)
    for name in HYP_SECTIONS[generation][:-1]:
        section = module.section(name)
        assert section["sh_addralign"] == PAGE
        used = name not in (".hyp.event_ids", ".hyp.patchable_function_entries")
        assert section["sh_size"] == (PAGE if used else 0), name
    assert module.section(".hyp.bss")["sh_type"] == "SHT_NOBITS"
    assert module.section(".hyp.reloc")["sh_addralign"] == 4


def test_el2_section_flags_are_those_that_the_kernel_maps_by(build) -> None:
    module = build()
    flags = {name: module.section(name)["sh_flags"] & 7 for name in HYP_SECTIONS["android16-6.12"]}
    write, alloc, execute = 1, 2, 4
    assert flags[".hyp.text"] == alloc | execute
    assert flags[".hyp.bss"] == flags[".hyp.data"] == alloc | write
    assert flags[".hyp.rodata"] == alloc
    assert flags[".hyp.reloc"] == alloc


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_module_without_el2_code_has_the_el2_sections_at_size_0(
    write_tree: WriteTree, headers: Path, generation: str
) -> None:
    top = write_tree(
        {"Makefile": "obj-m := plain.o\n", "plain.c": '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'}
    )
    module = Module(build_module(top, None, generation).path)
    assert {name: module.section(name)["sh_size"] for name in HYP_SECTIONS[generation]} == dict.fromkeys(
        HYP_SECTIONS[generation], 0
    )
    assert [module.section(name)["sh_size"] for name in (".plt", ".init.plt", ".text.ftrace_trampoline")] == [1, 1, 1]


def test_hyp_reloc_points_at_every_pointer_in_el2_data_and_at_nothing_else(build) -> None:
    module = build()
    places = {
        (section, offset)
        for section in (".hyp.rodata", ".hyp.data", ".hyp.text")
        for offset, kind, _, _ in module.relocations(section)
        if kind == 257
    }
    entries = module.relocations(".hyp.reloc")
    listed = {(symbol.removeprefix("__kvm_nvhe___hyp_section_"), addend) for _, _, symbol, addend in entries}
    assert len(places) == 4
    assert listed == places
    assert [(offset, kind) for offset, kind, _, _ in entries] == [(4 * index, 261) for index in range(4)]
    assert module.section(".hyp.reloc").data() == bytes(16)


def test_every_symbol_of_the_el2_half_has_the_prefix(build) -> None:
    module = build()
    names = module.elf.get_section_by_name(".symtab")
    el2 = {
        index
        for index, section in enumerate(module.elf.iter_sections())
        if section.name.startswith(".hyp.") and section.name != ".hyp.reloc"
    }
    inside = [s.name for s in names.iter_symbols() if s["st_shndx"] in el2 and s["st_info"]["type"] != "STT_SECTION"]
    assert {"__kvm_nvhe_$x", "__kvm_nvhe_$d", "__kvm_nvhe_sample_hyp_init", "__kvm_nvhe_counters"} <= set(inside)
    assert all(name.startswith("__kvm_nvhe_") for name in inside)
    files = [symbol.name for symbol in names.iter_symbols() if symbol["st_info"]["type"] == "STT_FILE"]
    assert files == ["el1.c", "__kvm_nvhe_el2.c", "sample.mod.c"]


@pytest.mark.parametrize(
    ("generation", "el1", "el2"),
    [
        ("android14-6.1", 0x36B1C5A6, None),
        ("android15-6.6", 0x36B1C5A6, 0xC382D712),
        ("android16-6.12", 0x6FBB3035, 0xF175F853),
    ],
)
def test_type_ids_stand_before_functions_as_the_generation_has_them(build, generation: str, el1: int, el2: int) -> None:
    module = build(generation)
    assert module.word_before("init_module") == el1
    word = module.word_before("__kvm_nvhe_sample_hyp_init")
    assert word == el2 if el2 is not None else word not in (0xC382D712, 0xF175F853)
    if el2 is not None:
        assert module.symbols()["__kcfi_typeid___kvm_nvhe_sample_hyp_init"] == (el2, "SHN_ABS")


@pytest.mark.parametrize(
    ("generation", "size", "version"),
    [
        ("android14-6.1", 1024, "6.1."),
        ("android15-6.6", 1536, "6.6."),
        ("android16-6.12", 1600, "6.12.23-android16-0-pkvm-emu SMP preempt mod_unload modversions aarch64"),
    ],
)
def test_this_module_has_the_size_the_name_and_the_init_pointer(
    build, generation: str, size: int, version: str
) -> None:
    module = build(generation)
    section = module.section(".gnu.linkonce.this_module")
    assert section["sh_size"] == size
    assert section.data()[24:31] == b"sample\0"
    assert module.relocations(".gnu.linkonce.this_module") == [(392, 257, "init_module", 0)]
    info = module.modinfo()
    assert [text.partition("=")[0] for text in info] == ["license", "vermagic", "name", "depends"]
    assert info[1].startswith(f"vermagic={version}")
    assert info[2:] == ["name=sample", "depends="]


def test_an_exit_function_is_entered_in_this_module(write_tree: WriteTree, headers: Path) -> None:
    text = EL1_C + "void cleanup_module(void) {}\n"
    module = Module(build_module(write_tree(kbuild_files() | {"el1.c": text})).path)
    assert (1000, 257, "cleanup_module", 0) in module.relocations(".gnu.linkonce.this_module")


def test_debug_information_names_the_sources_as_the_user_did(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = Module(build_module(Path("sample"), Path("x.ko")).path)
    units = [unit.get_top_DIE().attributes["DW_AT_name"].value for unit in module.elf.get_dwarf_info().iter_CUs()]
    assert units == [b"sample/el1.c", b"sample/hyp/el2.c", b"./sample/sample.mod.c"]


def test_function_tracing_fills_the_patchable_entries_and_leaves_room_for_the_trampoline(build) -> None:
    module = build(config={"CONFIG_PKVM_FTRACE": "y"})
    entries = [entry for entry in module.relocations(".hyp.patchable_function_entries") if entry[1] == 257]
    assert len(entries) == 2
    assert module.section(".hyp.patchable_function_entries")["sh_size"] == PAGE
    listed = [symbol for _, _, symbol, _ in module.relocations(".hyp.reloc")]
    assert listed.count("__kvm_nvhe___hyp_section_.hyp.patchable_function_entries") == 2
    assert module.section(".hyp.text").data()[-20:] == bytes(20)


def test_assembly_is_preprocessed_and_takes_part_at_both_levels(write_tree: WriteTree, headers: Path) -> None:
    text = "#ifndef __ASSEMBLY__\n#error\n#endif\n.text\n.global SYMBOL\nSYMBOL:\n ret\n"
    files = kbuild_files()
    top = write_tree(
        files
        | {
            "Makefile": files["Makefile"].replace("el1.o", "el1.o low.o"),
            "hyp/Makefile": files["hyp/Makefile"].replace("el2.o", "el2.o low.o"),
            "low.S": "#define SYMBOL el1_entry\n" + text,
            "hyp/low.S": "#ifdef __KVM_NVHE_HYPERVISOR__\n#define SYMBOL el2_entry\n#endif\n" + text,
        }
    )
    assert {"el1_entry", "__kvm_nvhe_el2_entry"} <= set(Module(build_module(top).path).symbols())


def test_events_and_formats_are_collected_sorted_by_name(write_tree: WriteTree, headers: Path) -> None:
    el1 = "".join(
        f'unsigned long event_{n} __attribute__((section("_hyp_events.{n}"), used)) = 0x{n * 16};\n'
        for n in ("b", "c", "a")
    )
    el2 = "".join(
        f'unsigned long id_{n} __attribute__((section(".hyp.event_ids.{n}"), used)) = 0x{n * 16};\n' for n in ("b", "a")
    )
    el2 += 'char offset __attribute__((section(".hyp.printk_fmt_offset"), used)) = 0x55;\n'
    el2 += 'char format[128] __attribute__((section(".hyp.printk_fmts"), used)) = "text";\n'
    module = Module(build_module(write_tree(kbuild_files() | {"el1.c": EL1_C + el1, "hyp/el2.c": EL2_C + el2})).path)
    assert module.section("_hyp_events").data().hex() == "a" * 16 + "b" * 16 + "c" * 16
    ids = module.section(".hyp.event_ids").data()
    assert (ids[:17].hex(), len(ids)) == ("a" * 16 + "b" * 16 + "55", PAGE)
    symbols = module.symbols()
    formats = module.names().index(".hyp.printk_fmts")
    assert module.section(".hyp.printk_fmts")["sh_size"] == 128
    assert symbols["__kvm_nvhe___hyp_printk_fmts_start"] == (0, formats)
    assert symbols["__kvm_nvhe___hyp_printk_fmts_end"] == (128, formats)


def test_event_ids_of_android15_are_bracketed(write_tree: WriteTree, headers: Path) -> None:
    el2 = EL2_C + 'long id __attribute__((section(".hyp.event_ids"), used)) = 1;\n'
    module = Module(build_module(write_tree(kbuild_files() | {"hyp/el2.c": el2}), None, "android15-6.6").path)
    index = module.names().index(".hyp.event_ids")
    assert module.symbols()["__kvm_nvhe___hyp_event_ids_start"] == (0, index)
    assert module.symbols()["__kvm_nvhe___hyp_event_ids_end"] == (8, index)


def test_device_tree_tables_become_aliases(write_tree: WriteTree, headers: Path) -> None:
    table = """
struct of_device_id { char name[32]; char type[32]; char compatible[128]; const void *data; };
static const struct of_device_id ids[] = {
    { .compatible = "acme,one" }, { .name = "n", .compatible = "acme,two" }, {}
};
extern __typeof__(ids) __mod_of__ids_device_table __attribute__((unused, alias("ids")));
"""
    info = Module(build_module(write_tree(kbuild_files() | {"el1.c": EL1_C + table})).path).modinfo()
    aliases = [text.removeprefix("alias=") for text in info if text.startswith("alias=")]
    assert aliases == ["of:N*T*Cacme,one", "of:N*T*Cacme,oneC*", "of:NnT*Cacme,two", "of:NnT*Cacme,twoC*"]
