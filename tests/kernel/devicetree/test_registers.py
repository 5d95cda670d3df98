"""The register windows behind a device tree: values, the log, and both exception levels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.devices.bus import MmioBus
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.profile import MachineProfile

TREE = '/ { #address-cells = <2>; #size-cells = <2>; pmu@10000000 { compatible = "acme,pmu"; reg = <0 0x10000000 0 0x1000>; }; };'
EL2 = """
static unsigned long regs;
int hyp_init(const struct pkvm_module_ops *ops)
{
	return ops->create_private_mapping(0x10000000, 0x1000, PAGE_HYP_DEVICE, &regs);
}
void hyp_call(pkvm_handler_regs_t *ctx)
{
	u64 *x = (u64 *)ctx;
	volatile u32 *word = (volatile u32 *)(regs + x[1]);

	*word = (u32)x[2];
	x[0] = 0;
	x[1] = *word;
}
"""


@pytest.fixture
def registers() -> MmioBus:
    return MmioBus(Machine(MachineProfile(ram_size=64 << 20)))


def test_el2_reaches_a_window_through_a_private_mapping(c_module: Callable[..., Path]) -> None:
    system = pkvm_emu.boot(modules=[c_module(el2=EL2)], dtb=parse_source(TREE))
    assert system.call("hyp_call", 0x20, 0xABCD).x1 == 0xABCD
    assert [(one.is_write, one.address, one.value, one.el) for one in system.mmio.log] == [
        (True, 0x1000_0020, 0xABCD, 2),
        (False, 0x1000_0020, 0xABCD, 2),
    ]


def test_a_register_that_python_sets_is_read_by_the_guest(c_module: Callable[..., Path]) -> None:
    system = pkvm_emu.boot(modules=[c_module(el2=EL2.replace("*word = (u32)x[2];", ""))], dtb=parse_source(TREE))
    system.mmio.poke(0x1000_0040, 0x1234_5678)
    assert system.call("hyp_call", 0x40, 0).x1 == 0x1234_5678


def test_parts_of_a_register_are_written_and_read(registers: MmioBus) -> None:
    registers.poke(0x100, 0x1122_3344_5566_7788, 8)
    registers.poke(0x102, 0xAA, 1)
    assert registers.peek(0x100, 8) == 0x1122_3344_55AA_7788
    assert registers.peek(0x103, 1) == 0x55
    assert registers.peek(0x102, 2) == 0x55AA


def test_windows_leave_ram_and_each_other_alone(registers: MmioBus) -> None:
    registers.map(0x1000_0000, 0x1000)
    # Around the first one, and up to where RAM begins.
    registers.map(0x0FFF_F000, 0x3000)
    registers.map(0x3FFF_F800, 0x1000)
    assert registers.covers(0x0FFF_F000)
    assert registers.covers(0x1000_1FFF)
    assert registers.covers(0x3FFF_F800)
    assert not registers.covers(0x4000_0000)
