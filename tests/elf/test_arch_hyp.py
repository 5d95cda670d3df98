"""arch.hyp is found from what the code does, wherever the build has put it."""

from __future__ import annotations

import struct

import pytest

from pkvm_emu.elf.arch_hyp import find_init_slot, static_evidence
from pkvm_emu.elf.module_file import ModuleFile

from .elf_builder import ALLOC, NOP, WRITE, ElfBuilder

HYP_TEXT = (0xFFFF_FFC0_0000_4000, 0xFFFF_FFC0_0000_6000)
ADRP_X0, ADD_X0, RET, BL = 0x90000000, 0x91000000, 0xD65F03C0, 0x94000000


def store(register: int, base: int, offset: int) -> int:
    """str x<register>, [x<base>, #offset]"""
    return 0xF9000000 | (offset // 8) << 10 | base << 5 | register


@pytest.mark.parametrize("offset", [0x28, 0x2C0, 0x470, 0x498, 1016])
def test_init_slot_is_the_pointer_into_hyp_text(offset):
    memory = bytearray(1600)
    struct.pack_into("<Q", memory, 8, HYP_TEXT[0] - 1)
    struct.pack_into("<Q", memory, 16, HYP_TEXT[1])
    struct.pack_into("<Q", memory, offset, HYP_TEXT[1] - 4)
    assert find_init_slot(bytes(memory), HYP_TEXT) == offset


def test_no_pointer_no_slot():
    memory = bytearray(64)
    struct.pack_into("<Q", memory, 12, HYP_TEXT[0])  # not aligned: no member of the structure
    assert find_init_slot(bytes(memory), HYP_TEXT) is None


def evidence(*code: int, relocations=((0, 275, 0), (4, 277, 0)), by_section: bool = False):
    elf = ElfBuilder()
    text = elf.text(".init.text", *code)
    home = elf.section(".gnu.linkonce.this_module", bytes(1024), ALLOC | WRITE, 64)
    symbol = elf.section_symbol(home) if by_section else elf.symbol("__this_module", home, 0, 1024)
    elf.rela(text, *[(offset, kind, symbol, addend) for offset, kind, addend in relocations])
    return static_evidence(ModuleFile.parse(elf.build(), "m.ko"))


@pytest.mark.parametrize("by_section", [False, True])
def test_store_through_the_module_pointer_is_evidence(by_section):
    found = evidence(ADRP_X0, ADD_X0, NOP, store(8, 0, 0x470), BL, by_section=by_section)
    assert found.stores == (0x470,)
    assert found.supports(0x3D8, 152)
    assert not found.supports(0x3D8, 192)


def test_reference_with_an_addend_is_evidence():
    found = evidence(ADRP_X0, 0xF9400000, relocations=((0, 275, 0x428), (4, 286, 0x428)))
    assert (found.references, found.stores) == ((0x428,), ())


@pytest.mark.parametrize(
    "between",
    [
        BL,  # a call may clobber the register
        RET,
        0x91002000,  # add x0, x0, #8
        0xAA0103E0,  # mov x0, x1
        0xF9400020,  # ldr x0, [x1]
        0xD2800000,  # mov x0, #0
    ],
)
def test_store_after_the_register_changed_is_no_evidence(between):
    assert evidence(ADRP_X0, ADD_X0, between, store(8, 0, 0x470)).stores == ()


def test_store_through_another_register_is_no_evidence():
    assert evidence(ADRP_X0, ADD_X0, store(8, 1, 0x470)).stores == ()
