"""For how many address bits a module was compiled shows in the constants of its EL1 code."""

from __future__ import annotations

import pytest

from pkvm_emu.arch.insn import mov_imm64, movz
from pkvm_emu.elf.module_file import ModuleFile

from .elf_builder import NOP, ElfBuilder

ORR_PAGE_OFFSET = {39: 0xB259_6000, 48: 0xB250_3C00}
MOV_PAGE_OFFSET = {39: 0xB259_63E0, 48: 0xB250_3FE0}
MOV_PAGE_END = {39: 0xB25A_67E0, 48: 0xB251_43E0}
LSR = {39: 0xD366_FC00, 48: 0xD36F_FC00}
ONE = {39: movz(0, 0x80, 32), 48: movz(0, 1, 48)}
LDR_X8 = 0xF940_0108
FAR = [NOP] * 40


def module(*code: int, memstart_at: int | None = None, section: str = ".text") -> ModuleFile:
    elf = ElfBuilder()
    text = elf.text(section, *code)
    elf.function("convert", text, 0, len(code) * 4)
    if memstart_at is not None:
        elf.rela(text, (memstart_at * 4, 286, elf.symbol("memstart_addr"), 0))
    return ModuleFile.parse(elf.build(), "m.ko")


@pytest.mark.parametrize("bits", [39, 48])
def test_virt_to_phys_shows_by_its_sum_and_its_shift(bits: int) -> None:
    found = module(NOP, ONE[bits], NOP, LSR[bits]).va_bits
    assert found is not None
    assert found.bits == bits
    assert found.reason == f"virt_to_phys with PAGE_OFFSET {(1 << 64) - (1 << bits):#x} at .text+0x4 (convert+0x4)"


@pytest.mark.parametrize("bits", [39, 48])
@pytest.mark.parametrize("table", [ORR_PAGE_OFFSET, MOV_PAGE_OFFSET, MOV_PAGE_END])
def test_one_constant_is_enough_where_nothing_contradicts_it(bits: int, table: dict[int, int]) -> None:
    found = module(NOP, table[bits]).va_bits
    assert found is not None
    assert found.bits == bits


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0xFFFF_FFFE_0000_0000, 39),
        (0xFFFF_FFFE_C000_0000, 39),
        (0xFFFF_FC00_0000_0000, 48),
        (0xFFFF_FDFF_C000_0000, 48),
        (0xDFFF_FFC0_0000_0000, 39),
        (0xEFFF_8000_0000_0000, 48),
    ],
)
def test_the_vmemmap_and_the_kasan_shadow_tell_too(value: int, bits: int) -> None:
    found = module(*mov_imm64(3, value)).va_bits
    assert found is not None
    assert found.bits == bits


def test_a_bare_power_of_two_says_nothing() -> None:
    assert module(ONE[48], NOP).va_bits is None
    assert module(ONE[48], LSR[39]).va_bits is None


def test_a_power_of_two_beside_memstart_addr_does() -> None:
    found = module(ONE[48], LDR_X8, memstart_at=1).va_bits
    assert found is not None
    assert found.bits == 48


def test_what_stands_beside_memstart_addr_counts_before_constants_elsewhere() -> None:
    code = [ORR_PAGE_OFFSET[39], LDR_X8, *FAR, MOV_PAGE_OFFSET[48], NOP, MOV_PAGE_END[48], NOP]
    found = module(*code, memstart_at=1).va_bits
    assert found is not None
    assert found.bits == 39


def test_contradicting_constants_of_the_same_weight_say_nothing() -> None:
    assert module(MOV_PAGE_OFFSET[39], NOP, NOP, NOP, NOP, MOV_PAGE_OFFSET[48]).va_bits is None


@pytest.mark.parametrize("section", [".hyp.text", ".rodata.text"])
def test_code_of_el2_does_not_count_and_other_code_does(section: str) -> None:
    found = module(ONE[48], LSR[48], section=section).va_bits
    assert (found is None) == section.startswith(".hyp.")


def test_code_without_such_constants_says_nothing() -> None:
    assert module(NOP, NOP).va_bits is None
    assert module(NOP).inlined_shadow is None


@pytest.mark.parametrize(
    ("offset", "shift", "accessible"), [(0xDFFF_FFC0_0000_0000, 3, 0), (0xEFFF_8000_0000_0000, 4, 0xFF)]
)
def test_an_inlined_shadow_says_which_kasan_it_is(offset: int, shift: int, accessible: int) -> None:
    found = module(*mov_imm64(9, offset)).inlined_shadow
    assert found is not None
    assert (found.offset, found.shift, found.accessible) == (offset, shift, accessible)
