"""Interrupts that models of devices raise: when they come, and to whom."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.devices.model import Model, Reg
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.system import System

TREE = """/ { #address-cells = <2>; #size-cells = <2>; interrupt-parent = <&gic>;
gic: gic { #interrupt-cells = <3>; interrupt-controller; };
engine@10000000 { compatible = "acme,engine"; reg = <0 0x10000000 0 0x1000>; interrupts = <0 5 4>, <0 6 4>;
	interrupt-names = "error", "done"; }; };"""
DRIVER = """
#include <linux/completion.h>
static DECLARE_COMPLETION(done);
static void __iomem *regs;
static irqreturn_t handle(int irq, void *data)
{
	pr_info("=handled with %u\\n", readl(regs + 4));
	complete(&done);
	return IRQ_HANDLED;
}
static int probe(struct platform_device *pdev)
{
	int ret;

	regs = devm_platform_ioremap_resource(pdev, 0);
	ret = devm_request_irq(&pdev->dev, platform_get_irq(pdev, 1), handle, 0, "acme", NULL);
	if (ret)
		return ret;
	writel(7, regs);
	pr_info("=started\\n");
	WAIT;
	pr_info("=goes on\\n");
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,engine" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "acme", .of_match_table = ids } };
module_platform_driver(acme);
"""


class Engine(Model):
    """Raises ``done`` when it is started."""

    COMPATIBLE = ("acme,engine",)
    start = Reg(0x0)
    result = Reg(0x4)

    def write_start(self, value: int) -> None:
        self.result = value + 1
        self.irq("done")


@pytest.fixture
def boot(driver):
    def run(wait: str) -> System:
        file = driver(DRIVER.replace("WAIT", wait))
        return pkvm_emu.boot("android16-6.12", [file], dtb=parse_source(TREE), mmio=[Engine])

    return run


def test_a_driver_that_waits_is_interrupted_in_its_wait(boot, said) -> None:
    system = boot("wait_for_completion(&done)")
    assert said(system) == ["started", "handled with 8", "goes on"]
    assert list(system.mmio.pending) == []


def test_one_that_does_not_wait_is_interrupted_after_it_has_returned(boot, said) -> None:
    assert said(boot("(void)0")) == ["started", "goes on", "handled with 8"]


def test_an_interrupt_that_no_driver_asked_for_is_forgotten(boot, said) -> None:
    system = boot("(void)0")
    system.mmio.model("engine").irq("error")
    assert list(system.mmio.pending) == [37]
    system.host.read(0x1000_0004, 4)
    assert list(system.mmio.pending) == []
    assert len(said(system)) == 3


def test_an_interrupt_that_the_node_does_not_have_is_refused(boot) -> None:
    engine = boot("(void)0").mmio.model("engine")
    for which in (2, "other"):
        with pytest.raises(UsageError, match=r"has no interrupt .* \(there: error, done\)"):
            engine.irq(which)
    assert engine.has_irq("done")
