"""Linking: symbol values, references, branch islands, names of addresses."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.instruction import IMM12, IMM16, IMM26, decode_adr
from pkvm_emu.elf.layout import Layout
from pkvm_emu.elf.link import LinkedImage, link
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.elf.relocation import RelocationError
from pkvm_emu.elf.symbols import Symboliser
from pkvm_emu.errors import InputError

from .elf_builder import ABS, ALLOC, FUNC, LOCAL, NOP, OBJECT, WEAK, WRITE, ElfBuilder, module_builder

BASE = 0xFFFF_FFC0_0000_0000
KERNEL = BASE + 0x400_0000


def linked(elf: ElfBuilder, resolve=lambda name: KERNEL) -> LinkedImage:
    module = ModuleFile.parse(elf.build(), "m.ko")
    return link(module, Layout.assign(module, BASE), resolve)


def test_references_go_to_the_final_addresses():
    image = linked(module_builder())
    text, data = image.section_va(".text"), image.section_va(".hyp.data")
    assert text + 4 + 4 * IMM26.decode(image.read_int(text + 4, 4)) == KERNEL
    assert image.read_int(data + 8, 8) == image.section_va(".hyp.text") + 4
    code = image.section_va(".hyp.text")
    page = (code + 4 & ~0xFFF) + 4096 * decode_adr(image.read_int(code + 4, 4))
    assert page + 8 * IMM12.decode(image.read_int(code + 8, 4)) == image.symbol_va("__kvm_nvhe_value")


def test_section_symbol_with_addend_points_into_the_section():
    elf = ElfBuilder()
    data = elf.section(".data", bytes(16), ALLOC | WRITE)
    strings = elf.section(".rodata.str1.1", b"one\0two\0", align=1)
    elf.rela(data, (8, 257, elf.section_symbol(strings), 4))
    image = linked(elf)
    pointer = image.read_int(image.section_va(".data") + 8, 8)
    assert image.read(pointer, 4) == b"two\0"


def test_absolute_symbol_keeps_its_value():
    elf = ElfBuilder()
    data = elf.section(".data", bytes(8), ALLOC | WRITE)
    elf.rela(data, (0, 257, elf.symbol("typeid", ABS, 0xF175F853), 0))
    image = linked(elf)
    assert image.read_int(image.section_va(".data"), 8) == image.symbol_va("typeid") == 0xF175F853


def test_undefined_weak_symbol_that_nobody_defines_is_zero():
    elf = ElfBuilder()
    data = elf.section(".data", b"\xff" * 16, ALLOC | WRITE)
    elf.rela(data, (0, 257, elf.symbol("maybe", bind=WEAK), 0), (8, 257, elf.symbol("found", bind=WEAK), 0))
    image = linked(elf, {"found": 0x1234}.get)
    assert struct.unpack("<QQ", image.read(image.section_va(".data"), 16)) == (0, 0x1234)
    assert image.unresolved == []


def test_unresolved_symbols_are_listed_with_their_first_use():
    image = linked(module_builder(), lambda name: None)
    assert [(symbol.name, symbol.first_use.text) for symbol in image.unresolved] == [
        ("_printk", ".text+0x4 (init_module+0x4)")
    ]


def test_each_undefined_symbol_is_asked_for_once():
    asked = []
    linked(module_builder(), lambda name: asked.append(name) or KERNEL)
    assert asked == ["_printk"]


def far_call(target: int, opcode: int = 0x94000000, calls: int = 1) -> LinkedImage:
    elf = ElfBuilder()
    text = elf.text(".text", *[opcode] * calls)
    symbol = elf.symbol("far")
    elf.rela(text, *[(4 * number, 283 if opcode >> 31 else 282, symbol, 0) for number in range(calls)])
    return linked(elf, lambda name: target)


def island_target(image: LinkedImage, site: int) -> int:
    """Follow the branch at ``site`` through its veneer, by the meaning of the instructions."""
    va = site + 4 * IMM26.decode(image.read_int(site, 4))
    assert image.layout.region_at(va).name == "text"
    first = image.read_int(va, 4)
    if first & 0x9F00001F == 0x90000010:
        add, br = image.read_int(va + 4, 4), image.read_int(va + 8, 4)
        assert (add & 0xFFC003FF, br) == (0x91000210, 0xD61F0200)
        return (va & ~0xFFF) + 4096 * decode_adr(first) + (IMM12.decode(add) & 0xFFF)
    value = 0
    for half in range(4):
        word = image.read_int(va + 4 * half, 4)
        assert word & 0xFFE0001F == (0xF2800010 if half else 0xD2800010) | half << 21
        value |= (IMM16.decode(word) & 0xFFFF) << 16 * half
    assert image.read_int(va + 16, 4) == 0xD61F0200
    return value


@pytest.mark.parametrize("opcode", [0x94000000, 0x14000000])
@pytest.mark.parametrize(
    "target", [BASE + 0x800_0000, BASE + 0xFFFF_0ABC, BASE - 0x1000_0004, BASE + (9 << 32) + 4, 0x1234_5678_9ABC]
)
def test_call_beyond_128_mib_goes_through_a_branch_island(target, opcode):
    image = far_call(target, opcode)
    assert image.read_int(BASE, 4) & 0xFC000000 == opcode
    assert island_target(image, BASE) == target


def test_call_within_reach_is_direct():
    image = far_call(BASE + 0x7FF_FFFC)
    assert IMM26.decode(image.read_int(BASE, 4)) == 0x1FF_FFFF


def test_calls_of_one_target_share_a_branch_island():
    image = far_call(BASE + (1 << 32), calls=3)
    islands = {site + 4 * IMM26.decode(image.read_int(site, 4)) for site in range(BASE, BASE + 12, 4)}
    assert len(islands) == 1


def test_misaligned_call_target_is_refused_only_beyond_reach():
    with pytest.raises(
        RelocationError, match=r"R_AARCH64_CALL26 at \.text\+0x0: target far is 0x100000002 away, beyond ±128 MiB"
    ):
        far_call(BASE + (1 << 32) + 2)


def test_hyp_call_of_another_module_is_recorded_and_gets_no_island():
    elf = ElfBuilder()
    text = elf.text(".hyp.text", NOP, 0x94000000, align=4096)
    elf.rela(text, (4, 283, elf.symbol("__kvm_nvhe_other"), 0))
    image = linked(elf, lambda name: BASE + (1 << 32))
    assert image.hyp_imports == [(image.section_va(".hyp.text") + 4, "__kvm_nvhe_other", BASE + (1 << 32), 283)]
    assert image.read_int(image.section_va(".hyp.text") + 4, 4) == 0x94000000


def test_reference_to_something_that_is_not_loaded_is_refused():
    elf = ElfBuilder()
    text = elf.section(".data", bytes(8), ALLOC | WRITE)
    comment = elf.section(".comment", b"text", flags=0)
    elf.rela(text, (0, 257, elf.symbol("note", comment, 0), 0))
    with pytest.raises(RelocationError, match=r"\.data\+0x0 refers to note in section \.comment, which is not loaded"):
        linked(elf)


def test_relocation_of_a_zero_filled_section_is_refused():
    elf = ElfBuilder()
    elf.rela(elf.bss(".bss", 16), (0, 257, 0, 0))
    with pytest.raises(RelocationError, match=r"patches \.bss, which has no bytes in the file"):
        linked(elf)


def test_global_definition_wins_over_a_local_of_the_same_name():
    elf = ElfBuilder()
    data = elf.section(".data", bytes(16), ALLOC | WRITE)
    elf.symbol("twice", data, 0, 8, LOCAL, OBJECT)
    elf.symbol("twice", data, 8, 8, type=OBJECT)
    image = linked(elf)
    assert image.symbol_va("twice") == image.section_va(".data") + 8
    assert image.symbol_va("never") is None


def test_address_is_named_by_the_nearest_function_of_its_section():
    elf = ElfBuilder()
    text = elf.text(".text", *[NOP] * 16)
    data = elf.section(".data", bytes(16), ALLOC | WRITE)
    elf.function("first", text, 4, 16)
    elf.symbol("$x.1", text, 8, bind=LOCAL)
    elf.symbol("__kvm_nvhe_$d", text, 12, bind=LOCAL)
    elf.symbol("label", text, 20)
    elf.function("second", text, 20)
    elf.symbol("third", text, 40, 0, LOCAL, FUNC)
    elf.symbol("object", data, 0, 8, type=OBJECT)
    image = linked(elf)
    names = Symboliser(image, "m")
    assert names.format_address(BASE + 14) == "first+0xa/0x10 [m]"
    assert names.format_address(BASE + 20) == "second+0x0/0x14 [m]"
    assert names.format_address(BASE + 63) == "third+0x17/0x18 [m]"
    assert names.format_address(BASE + 2) == ".text+0x2/0x40 [m]"
    assert names.format_address(image.section_va(".data") + 3) == "object+0x3/0x8 [m]"
    assert names.format_address(BASE + 64) is None
    assert names.format_address(BASE - 1) is None


@pytest.mark.parametrize(("va", "size"), [(BASE - 1, 1), (BASE + 0x1_0000_0000, 4), (BASE, 1 << 30)])
def test_access_outside_of_the_image_is_an_input_error(va, size):
    with pytest.raises(InputError, match="lie outside of the module"):
        linked(module_builder()).read(va, size)


def test_region_bytes_are_the_final_ones():
    image = linked(module_builder())
    region = image.layout.region(".hyp.data")
    assert image.region_bytes(region)[8:16] == image.read(image.section_va(".hyp.data") + 8, 8)
