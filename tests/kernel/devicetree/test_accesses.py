"""An access to a device happens once, whatever it sets off: an interrupt comes after its instruction, an error before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pkvm_emu
from pkvm_emu.devices.model import Model, Reg
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.system import System

TREE = """/ { #address-cells = <2>; #size-cells = <2>; interrupt-parent = <&gic>;
gic: gic { #interrupt-cells = <3>; interrupt-controller; };
engine@10000000 { compatible = "acme,engine"; reg = <0 0x10000000 0 0x1000>; interrupts = <0 5 4>; }; };"""
DRIVER = """
static void __iomem *regs;
static int handled;
static irqreturn_t handle(int irq, void *data) { handled++; return IRQ_HANDLED; }
#define UNMASKED(code) ({ u64 at = (u64)regs; \\
	asm volatile("msr daifclr, #2\\n\\t" code "\\n\\tmsr daifset, #2" : "+r"(at) :: "memory"); at; })
u64 writes(void) { return UNMASKED("str wzr, [%0]") == (u64)regs ? handled : -1; }
u64 reads(void) { return UNMASKED("ldr %w0, [%0, #4]") << 32 | handled; }
u64 counts_up(void) { return UNMASKED("ldr wzr, [%0, #4]\\n\\tldr wzr, [%0, #4]") == (u64)regs ? handled : -1; }
u64 writes_back(void) { return UNMASKED("str wzr, [%0], #4") - (u64)regs; }
u64 how_many(void) { return handled; }
u64 fails(void) { return UNMASKED("ldr %w0, [%0, #8]"); }
static int probe(struct platform_device *pdev)
{
	regs = devm_platform_ioremap_resource(pdev, 0);
	return devm_request_irq(&pdev->dev, platform_get_irq(pdev, 0), handle, 0, "acme", NULL);
}
static const struct of_device_id ids[] = { { .compatible = "acme,engine" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "acme", .of_match_table = ids } };
module_platform_driver(acme);
"""
Call = Callable[[str], int]


class Engine(Model):
    """Interrupts with each access."""

    COMPATIBLE = ("acme,engine",)
    start = Reg(0x0)
    result = Reg(0x4)
    broken = Reg(0x8)

    def write_start(self, value: int) -> None:
        self.irq()

    def read_result(self) -> int:
        self.irq()
        return 0x1234

    def read_broken(self) -> int:
        raise ValueError("it burns")


@pytest.fixture
def system(driver) -> System:
    return pkvm_emu.boot("android16-6.12", [driver(DRIVER)], dtb=parse_source(TREE), mmio=[Engine])


@pytest.fixture
def call(system: System) -> Call:
    def run(name: str) -> int:
        va = system.modules["driver"].symbol(name)
        assert va is not None
        return system.kernel.call(va)

    return run


def times(system: System) -> int:
    return sum(access.times for access in system.mmio.log)


def test_a_write_that_interrupts_is_made_once_and_its_handler_runs_before_the_next_instruction(
    system: System, call: Call
) -> None:
    assert call("writes") == 1
    assert times(system) == 1


def test_a_read_into_its_own_address_register_gives_its_value(system: System, call: Call) -> None:
    assert call("reads") == 0x1234 << 32 | 1
    assert times(system) == 1


def test_each_access_has_its_interrupt(system: System, call: Call) -> None:
    assert call("counts_up") == 2
    assert times(system) == 2


def test_an_instruction_that_goes_on_after_its_access_is_interrupted_later(system: System, call: Call) -> None:
    assert call("writes_back") == 4
    assert times(system) == 1
    assert call("how_many") == 1


def test_an_error_in_an_access_leaves_the_registers_of_before(system: System, call: Call) -> None:
    with pytest.raises(UsageError, match="it burns"):
        call("fails")
    engine = system.machine.engine
    word = system.machine.core.fetch(engine.read("pc"))
    assert word is not None
    assert word & 0xFFFF_FC00 == 0xB940_0800
    base = engine.read(f"x{word >> 5 & 31}")
    assert engine.translate(base) == 0x1000_0000
