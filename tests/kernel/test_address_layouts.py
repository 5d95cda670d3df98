"""Kernels with 39 and 48 address bits: chosen from the modules' code or by the user, and right for inlined arithmetic."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.layout import LAYOUTS
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

EL1 = """
extern s64 memstart_addr;
extern u64 kimage_voffset;
#undef PAGE_OFFSET
#define PAGE_OFFSET (-(1UL << BITS))
static u64 in_data = 0x77;
static u64 noinline phys(u64 va)
{
	u64 offset = va - PAGE_OFFSET;
	return offset >> (BITS - 1) ? va - kimage_voffset : offset + memstart_addr;
}
static u64 *noinline virt(u64 pa) { return (u64 *)((pa - memstart_addr) | PAGE_OFFSET); }
unsigned long __get_free_pages(unsigned int flags, unsigned int order);
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
static unsigned long token;
static int __init probe_init(void)
{
	u64 page = __get_free_pages(0xcc0, 0);
	*virt(phys(page)) = 0x5A;
	pr_info("=%llx %llx %llx\\n", *(u64 *)page, phys((u64)&memstart_addr), page);
	return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token)
		?: pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
}
module_init(probe_init);
"""
EL2 = """
static const struct pkvm_module_ops *ops;
int hyp_init(const struct pkvm_module_ops *given) { ops = given; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	x[3] = ops->host_share_hyp(x[2]);
	x[1] = x[3] ? 0 : *(u64 *)ops->kern_hyp_va(x[1]);
}
"""
SMALL = MachineProfile(ram_size=64 << 20)


def source(bits: int) -> str:
    return EL1.replace("BITS", str(bits))


def said(system: System) -> list[int]:
    line = next(record.text for record in system.kernel.log if "=" in record.text and record.text.startswith("probe"))
    return [int(word, 16) for word in line.partition("=")[2].split()]


@pytest.mark.parametrize("bits", [39, 48])
def test_a_kernel_is_chosen_that_inlined_arithmetic_is_right_on(c_module, bits: int) -> None:
    system = pkvm_emu.boot("16", [c_module(source(bits), EL2)], profile=SMALL)
    value, image, page = said(system)
    memory = system.kernel.memory
    assert memory.layout is LAYOUTS[bits]
    assert value == 0x5A
    assert image == memory.to_pa(system.kernel.symbols.resolve("memstart_addr"))
    assert page >> bits == (1 << 64 - bits) - 1
    # The linear map's hyp VA of the same page.
    result = system.call("hyp_call", page, memory.linear_pa(page) >> 12)
    assert (result.x1, result.x3) == (0x5A, 0)


def test_a_user_may_choose_another_one_and_the_log_says_what_the_module_wants(c_module) -> None:
    path = c_module(source(39), EL2)
    system = pkvm_emu.boot("16", profile=MachineProfile(ram_size=64 << 20, va_bits=48))
    assert system.kernel.memory.layout.va_bits == 48
    # Its inlined phys_to_virt() leads nowhere there.
    with pytest.raises(KernelOops):
        system.load(path)
    assert "probe: compiled for 39-bit addresses (" in system.dmesg


def test_modules_that_disagree_are_refused_with_both_names(c_module) -> None:
    one = c_module(source(39), EL2, name="one")
    other = c_module(source(48), EL2, name="other")
    with pytest.raises(UsageError) as caught:
        pkvm_emu.boot("16", [one, other], profile=SMALL)
    text = str(caught.value)
    assert text.startswith("the modules were compiled for kernels with different address bits: one.ko for 39 (")
    assert "other.ko for 48 (PAGE_OFFSET 0xffff000000000000 at " in text
    assert text.endswith("choose one with --machine va39 or va48")


def test_modules_that_do_not_say_get_39_bits(c_module) -> None:
    assert ModuleFile.load(c_module()).va_bits is None
    assert pkvm_emu.boot("16", [c_module()], profile=SMALL).kernel.memory.layout.va_bits == 39


def test_a_kernel_with_other_bits_is_not_emulated() -> None:
    with pytest.raises(UsageError, match=r"^a kernel with 47-bit addresses is not emulated; there are: 39, 48$"):
        pkvm_emu.boot("16", profile=MachineProfile(va_bits=47))


def test_the_words_of_the_command_line_set_the_bits() -> None:
    assert MachineProfile.parse("va48").va_bits == 48
    assert MachineProfile.parse("nvhe,va39").va_bits == 39
    assert MachineProfile.parse("").va_bits is None


@pytest.mark.parametrize("bits", [39, 48])
def test_no_area_overlaps_another(bits: int) -> None:
    row = LAYOUTS[bits]
    assert row.page_offset == (1 << 64) - (1 << bits)
    assert row.linear_end == (1 << 64) - (1 << bits - 1)
    order = (row.linear_end, row.modules_vaddr, row.modules_end, row.stacks_vaddr, row.vmalloc_start, row.vmalloc_end)
    assert list(order) == sorted(order)
    assert row.kimage_vaddr == row.modules_end
    for line in ((5, 15), (6, 1), (6, 6), (6, 12)):
        assert row.vmalloc_end < line_facts(line).vmemmap_start(bits)


@pytest.mark.parametrize(
    ("generation", "bits", "start"),
    [
        ("android14-6.1", 39, 0xFFFF_FFFE_0000_0000),
        ("android14-6.1", 48, 0xFFFF_FC00_0000_0000),
        ("android16-6.12", 39, 0xFFFF_FFFE_C000_0000),
        ("android16-6.12", 48, 0xFFFF_FDFF_C000_0000),
    ],
)
def test_struct_page_is_where_the_line_has_it(generation: str, bits: int, start: int) -> None:
    system = pkvm_emu.boot(generation, profile=MachineProfile(ram_size=64 << 20, va_bits=bits))
    pages = system.kernel.part(Vmemmap)
    assert pages.page(system.kernel.memory.memstart + 0x3000) == start + 3 * 64


def test_a_fault_of_a_48_bit_kernel_names_all_levels(c_module) -> None:
    text = source(48).replace("u64 page =", "*(volatile u64 *)(PAGE_OFFSET | 1UL << 46) = 0; u64 page =")
    path = c_module(text, EL2, name="crash")
    system = pkvm_emu.boot("16", profile=MachineProfile(ram_size=64 << 20, va_bits=48))
    with pytest.raises(KernelOops):
        system.load(path)
    assert "swapper pgtable: 4k pages, 48-bit VAs, pgdp=" in system.dmesg
    assert "init_module+0x" in system.dmesg
