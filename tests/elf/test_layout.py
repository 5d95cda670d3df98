"""Where sections lie: invariants that hold for any module."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.elf.instruction import VENEER_SIZE
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.module_file import HYP_MAPPED_SECTIONS, ModuleFile

from .elf_builder import ALLOC, EXEC, NOBITS, NOP, PROGBITS, WRITE, ElfBuilder, module_builder

BASE = 0xFFFF_FFC0_0000_0000
PAGE = 4096

ORDINARY = [
    ".text", ".init.text", ".rodata", ".init.rodata", ".data", ".init.data", ".bss", ".modinfo", "__jump_table",
    ".data..ro_after_init", ".altinstructions", "_hyp_events", ".hyp.printk_fmts", ".hyp.reloc", ".init.eh_frame",
]  # fmt: skip

section_specs = st.tuples(
    st.sampled_from(ORDINARY + list(HYP_MAPPED_SECTIONS)),
    st.integers(0, 9000),
    st.sampled_from([0, WRITE, EXEC, WRITE | EXEC]),
    st.sampled_from([0, 1, 2, 4, 8, 16, 64, 128, 4096, 65536]),
    st.booleans(),
)


def build(specs, *, extra=()) -> ModuleFile:
    elf = ElfBuilder()
    elf.text(".hyp.text", NOP, align=4096)
    for name, size, flags, align, is_nobits in [*specs, *extra]:
        if name != ".hyp.text":
            kind, data = (NOBITS, b"") if is_nobits else (PROGBITS, bytes(size))
            elf.section(name, data, ALLOC | flags, align, kind, size)
    return ModuleFile.parse(elf.build(), "m.ko")


@settings(max_examples=80, deadline=None)
@given(specs=st.lists(section_specs, max_size=14), base=st.integers(0, 1 << 30).map(lambda page: BASE + page * PAGE))
def test_layout_invariants(specs, base):
    module = build(specs)
    layout = Layout.assign(module, base)
    loaded = {section.index: section for section in module.sections if section.is_alloc}

    assert set(layout.placements) == set(loaded)
    for index, va in layout.placements.items():
        assert va % loaded[index].align == 0
        assert base <= va <= va + loaded[index].size <= base + layout.size

    spans = sorted((va, va + loaded[index].size) for index, va in layout.placements.items() if loaded[index].size)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))

    assert all(region.va % PAGE == region.size % PAGE == 0 for region in layout.regions)
    assert all(first.va + first.size <= second.va for first, second in pairwise(layout.regions))
    for index, va in layout.placements.items():
        if loaded[index].size:
            region = layout.region_at(va)
            assert index in region.sections
            assert va + loaded[index].size <= region.va + region.size


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(section_specs, max_size=14))
def test_hyp_sections_are_one_block_of_whole_pages_in_file_order(specs):
    module = build(specs)
    layout = Layout.assign(module, BASE)
    mapped = module.hyp_mapped_sections
    places = [layout.placements[section.index] for section in mapped]
    assert places == sorted(places)
    assert all(place % PAGE == 0 for place in places)
    assert layout.hyp_base == places[0]
    block = range(layout.hyp_base, layout.hyp_base + layout.hyp_size)
    assert layout.hyp_size % PAGE == 0
    assert places[-1] + mapped[-1].size <= block.stop
    strangers = [part for part in module.sections if part.is_alloc and part.size and part not in mapped]
    assert not [part.name for part in strangers if layout.placements[part.index] in block]


@settings(max_examples=30, deadline=None)
@given(specs=st.lists(section_specs, max_size=8), pages=st.integers(1, 1 << 20))
def test_moving_the_base_keeps_every_distance(specs, pages):
    # A section may ask for more than page alignment; move by its multiple.
    module = build(specs)
    first, second = Layout.assign(module, BASE), Layout.assign(module, BASE + pages * 65536)
    assert first.size == second.size
    assert {index: va + pages * 65536 for index, va in first.placements.items()} == second.placements


def test_groups_and_protections_are_those_of_the_module_loader():
    specs = [
        (".init.data", 8, WRITE, 8, False), (".init.rodata", 8, 0, 8, False), (".init.text", 8, EXEC, 4, False),
        (".bss", 8, WRITE, 8, True), (".data..ro_after_init", 8, WRITE, 8, False),
        ("__jump_table", 16, WRITE, 8, False),
        (".rodata", 8, 0, 8, False), (".text", 8, EXEC, 4, False), (".modinfo", 8, 0, 1, False),
    ]  # fmt: skip
    module = build(specs)
    layout = Layout.assign(module, BASE)
    names = [
        (region.name, region.prot, [module.sections[index].name for index in region.sections])
        for region in layout.regions
    ]
    assert names == [
        ("text", "rx", [".text"]),
        ("rodata", "ro", [".rodata"]),
        ("ro_after_init", "ro", [".data..ro_after_init", "__jump_table"]),
        ("data", "rw", [".bss"]),
        (".hyp.text", "rx", [".hyp.text"]),
        ("init.text", "rx", [".init.text"]),
        ("init.rodata", "ro", [".init.rodata", ".modinfo"]),
        ("init.data", "rw", [".init.data"]),
    ]


def test_section_addresses_in_the_file_are_ignored():
    data = bytearray(module_builder().build())
    plain = Layout.assign(ModuleFile.parse(bytes(data), "m.ko"), BASE)
    headers = int.from_bytes(data[40:48], "little")
    for section in range(1, 7):
        data[headers + 64 * section + 16 : headers + 64 * section + 24] = (0x1230 * section).to_bytes(8, "little")
    assert Layout.assign(ModuleFile.parse(bytes(data), "m.ko"), BASE).placements == plain.placements


def test_printk_formats_are_neither_page_aligned_nor_in_the_hyp_block():
    module = build([(".data", 8, WRITE, 8, False), (".hyp.printk_fmts", 128, WRITE, 1, False)])
    layout = Layout.assign(module, BASE)
    va = layout.placements[module.section(".hyp.printk_fmts").index]
    assert va % PAGE == 8
    assert layout.region_at(va).name == "data"


def test_module_without_el2_code_has_no_hyp_block():
    elf = ElfBuilder()
    elf.text(".text", NOP)
    elf.section(".hyp.text", b"\0", ALLOC | EXEC, 4096)
    layout = Layout.assign(ModuleFile.parse(elf.build(), "m.ko"), BASE)
    assert (layout.hyp_base, layout.hyp_size) == (0, 0)


def test_veneer_room_is_one_slot_for_each_undefined_call_target():
    elf = ElfBuilder()
    text, init = elf.text(".text", *[NOP] * 4), elf.text(".init.text", NOP)
    one, two, own = elf.symbol("one"), elf.symbol("two"), elf.function("own", text)
    elf.rela(text, (0, 283, one, 0), (4, 282, one, 0), (8, 283, two, 0), (12, 283, own, 0))
    elf.rela(init, (0, 283, one, 0))
    layout = Layout.assign(ModuleFile.parse(elf.build(), "m.ko"), BASE)
    assert [(area.region, area.size) for area in layout.veneers] == [
        ("text", 2 * VENEER_SIZE),
        ("init.text", VENEER_SIZE),
    ]
    assert all(layout.region_at(area.va).name == area.region for area in layout.veneers)


def test_base_has_to_be_page_aligned():
    with pytest.raises(ValueError, match="not page aligned"):
        Layout.assign(build([]), BASE + 8)
