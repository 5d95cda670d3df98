"""Modules whose KASAN checks are inlined read a shadow that says that everything is accessible."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.errors import EmulatorError
from pkvm_emu.kernel.kasan_shadow import KasanShadow
from pkvm_emu.machine.profile import MachineProfile

SOURCE = """
unsigned long __get_free_pages(unsigned int flags, unsigned int order);
static int in_data;
static u8 noinline look(const volatile void *at, int poison)
{
	volatile u8 *shadow = (volatile u8 *)(((unsigned long)at >> SHIFT) + OFFSETUL);
	if (poison)
		*shadow = 0xF1;
	return *shadow;
}
static int __init probe_init(void)
{
	int on_stack = 0;
	u8 before = look(&on_stack, 0), during = look(&on_stack, 1);
	pr_info("=%x %x %x %x %x\\n", before, during, look(&in_data, 0), look((void *)__get_free_pages(0xcc0, 0), 0),
		look(&probe_init, 0));
	return 0;
}
module_init(probe_init);
"""
SMALL = MachineProfile(ram_size=64 << 20)
KINDS = [
    pytest.param(0xDFFF_FFC0_0000_0000, 3, 0, 39, id="generic, 39"),
    pytest.param(0xDFFF_8000_0000_0000, 3, 0, 48, id="generic, 48"),
    pytest.param(0xEFFF_FFC0_0000_0000, 4, 0xFF, 39, id="tags, 39"),
    pytest.param(0xEFFF_8000_0000_0000, 4, 0xFF, 48, id="tags, 48"),
]


def source(offset: int, shift: int) -> str:
    return SOURCE.replace("OFFSET", f"{offset:#x}").replace("SHIFT", str(shift))


@pytest.mark.parametrize(("offset", "shift", "accessible", "bits"), KINDS)
def test_the_shadow_lets_all_through_and_that_of_a_stack_can_be_poisoned(
    c_module, offset: int, shift: int, accessible: int, bits: int
) -> None:
    path = c_module(source(offset, shift), None, name="shadowed")
    system = pkvm_emu.boot("14", profile=MachineProfile(ram_size=64 << 20, va_bits=bits))
    system.load(path)
    line = next(record.text for record in system.kernel.log if "=" in record.text and "shadowed:" in record.text)
    clean = f"{accessible:x}"
    assert line.partition("=")[2].split() == [clean, "f1", clean, clean, clean]


def test_a_module_without_inlined_checks_costs_no_shadow(c_module) -> None:
    system = pkvm_emu.boot("16", [c_module()], profile=SMALL)
    assert system.kernel.part(KasanShadow).offset == 0


def test_modules_of_different_kinds_do_not_go_together(c_module) -> None:
    generic = c_module(source(0xDFFF_FFC0_0000_0000, 3), None, name="generic")
    tags = c_module(source(0xEFFF_FFC0_0000_0000, 4), None, name="tags")
    system = pkvm_emu.boot("14", profile=SMALL)
    system.load(generic)
    with pytest.raises(EmulatorError, match="they are from different kernels"):
        system.load(tags)
