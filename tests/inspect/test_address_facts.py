"""Inspection says which kernel's addresses a module was compiled for, and which imports Python serves for another module."""

from __future__ import annotations

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.inspect.inspection import inspect_module
from pkvm_emu.inspect.text import TextReport

SOURCE = """
int exynos_usbdrd_set_s2mpu_pm_ops(int (*cb)(void *dev, bool on));
unsigned long __get_free_pages(unsigned int flags, unsigned int order);
static int __init start(void)
{
	u8 *shadow = (u8 *)((__get_free_pages(0xcc0, 0) >> 3) + 0xdfff800000000000UL);
	return exynos_usbdrd_set_s2mpu_pm_ops(NULL) + *shadow;
}
module_init(start);
"""


def test_address_bits_shadow_and_companions_are_told(c_module) -> None:
    facts = inspect_module(ModuleFile.load(c_module(SOURCE, None, name="facts")))
    assert facts.build.va_bits == 48
    assert facts.build.kasan_shadow == 0xDFFF_8000_0000_0000
    given = {row.name: (row.status, row.given_by) for row in facts.imports}
    assert given["exynos_usbdrd_set_s2mpu_pm_ops"] == ("companion", "phy-exynos-usbdrd-super")
    assert given["__get_free_pages"] == ("served", None)
    text = TextReport(facts).text()
    assert "\n  for a kernel with 48-bit addresses: KASAN shadow offset 0xdfff800000000000 at " in text
    assert "\n  KASAN checks are inlined: they read a shadow at offset 0xdfff800000000000\n" in text
    assert "\n  served in place of a module that is not given: 1\n" in text
    plain = facts.as_dict()["build"]
    assert plain["va_bits_reason"].startswith("KASAN shadow offset 0xdfff800000000000 at ")


def test_a_module_that_does_not_say_has_no_address_bits(c_module) -> None:
    build = inspect_module(ModuleFile.load(c_module())).build
    assert (build.va_bits, build.va_bits_reason, build.kasan_shadow) == (None, None, None)
