"""A driver on the platform bus: probed in the guest, bound, interrupted, failed and removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.machine.core import Stuck
from pkvm_emu.system import System

Run = Callable[..., System]
Said = Callable[[System], list[str]]
GENERATIONS = ["android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12"]
GIC = "interrupt-parent = <&gic>; gic: gic { #interrupt-cells = <3>; interrupt-controller; };"
TIMER = (
    GIC + 'timer@10000000 { compatible = "acme,timer"; reg = <0 0x10000000 0 0x1000>, <0 0x10002000 0 0x1000>;'
    "interrupts = <0 5 4>; clock = <24>; };"
)
DRIVER = """
struct state { void __iomem *regs; int fired; };
static irqreturn_t handle(int irq, void *data)
{
	struct state *state = data;

	state->fired++;
	writel(readl(state->regs + 4) + 1, state->regs + 4);
	return IRQ_HANDLED;
}
static void gone(void *data) { pr_info("=gone %s\\n", (const char *)data); }
static int probe(struct platform_device *pdev)
{
	struct state *state = devm_kzalloc(&pdev->dev, sizeof(*state), GFP_KERNEL);
	struct resource *second;
	int irq = platform_get_irq(pdev, 0);
	u32 clock = 0;

	of_property_read_u32(pdev->dev.of_node, "clock", &clock);
	state->regs = devm_platform_ioremap_resource(pdev, 0);
	if (IS_ERR(state->regs))
		return PTR_ERR(state->regs);
	writel(clock, state->regs);
	platform_set_drvdata(pdev, state);
	devm_add_action(&pdev->dev, gone, "first");
	devm_add_action(&pdev->dev, gone, "second");
	second = platform_get_resource(pdev, IORESOURCE_MEM, 1);
	dev_info(&pdev->dev, "clock %u, second window %llx\\n", clock, (u64)second->start);
	return RESULT ?: devm_request_irq(&pdev->dev, irq, handle, 0, "acme", state);
}
REMOVE_TYPE remove(struct platform_device *pdev)
{
	struct state *state = platform_get_drvdata(pdev);

	pr_info("=removed after %d\\n", state->fired);
	REMOVE_RETURN;
}
static const struct of_device_id ids[] = { { .compatible = "acme,timer" }, { } };
static struct platform_driver acme = { .probe = probe, .remove = remove,
	.driver = { .name = "acme-timer", .of_match_table = ids } };
module_platform_driver(acme);
"""


def text(result: int = 0, generation: str = "android16-6.12") -> str:
    void = generation == "android16-6.12"
    return (
        f"#define RESULT ({result})\n#define REMOVE_TYPE static {'void' if void else 'int'}\n"
        f"#define REMOVE_RETURN return {'' if void else '0'}\n{DRIVER}"
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_driver_is_probed_for_the_node_it_matches(run: Run, generation: str) -> None:
    system = run(text(generation=generation), TIMER, generation)
    line = next(record for record in system.kernel.log if "clock" in record.text)
    assert line.text == "acme-timer 10000000.timer: clock 24, second window 10002000"
    assert line.level == 6
    assert system.mmio.peek(0x1000_0000) == 24


def test_an_interrupt_fired_from_python_runs_its_handler_in_the_guest(run: Run) -> None:
    system = run(text(), TIMER)
    number = system.irq.number(32 + 5)
    assert system.irq.fire(number) == 1
    assert system.irq.fire(number) == 1
    assert system.mmio.peek(0x1000_0004) == 2


def test_an_interrupt_without_handler_cannot_be_fired(run: Run) -> None:
    with pytest.raises(UsageError, match="interrupt 99 has no handler"):
        run(text(), TIMER).irq.fire(99)


def test_a_disabled_interrupt_waits_until_it_is_enabled(run: Run) -> None:
    system = run(text(), TIMER)
    number = system.irq.number(37)
    system.irq.disable(number)
    assert system.irq.fire(number) == 0
    assert system.mmio.peek(0x1000_0004) == 0
    system.irq.enable(number)
    assert system.mmio.peek(0x1000_0004) == 1


def test_unloading_a_driver_removes_its_device_and_releases_in_reverse_order(run: Run, said: Said) -> None:
    system = run(text(), TIMER)
    module = system.modules["driver"]
    system.irq.fire(system.irq.number(37))
    cleanup = module.symbol("cleanup_module")
    assert cleanup is not None
    system.kernel.call(cleanup)
    assert said(system) == ["removed after 1", "gone second", "gone first"]
    assert not any(system.irq.actions.values())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_failed_probe_is_reported_as_the_line_does_and_releases_everything(
    run: Run, said: Said, generation: str
) -> None:
    system = run(text(-22, generation), TIMER, generation)
    assert said(system) == ["gone second", "gone first"]
    lines = [record.text for record in system.kernel.log if "failed with error" in record.text]
    new = generation == "android16-6.12"
    assert lines == [
        "acme-timer 10000000.timer: probe with driver acme-timer failed with error -22"
        if new
        else "acme-timer: probe of 10000000.timer failed with error -22"
    ]
    assert system.boot_report.outcomes[0].status == "loaded"


@pytest.mark.parametrize("error", [-19, -6])
def test_a_probe_that_rejects_the_device_is_silent(run: Run, error: int) -> None:
    assert "probe" not in run(text(error), TIMER).dmesg


def test_a_disabled_node_is_not_probed(run: Run) -> None:
    system = run(text(), TIMER.replace("clock", 'status = "disabled"; clock'))
    assert "clock 24" not in system.dmesg


def test_only_buses_hand_their_children_to_drivers(run: Run) -> None:
    inner = TIMER.removeprefix(GIC)
    bus = GIC + f"soc {{ #address-cells = <2>; #size-cells = <2>; ranges; {inner} }};"
    on_bus = run(text(), bus.replace("soc {", 'soc { compatible = "simple-bus";'))
    elsewhere = run(text(), bus)
    assert "clock 24" in on_bus.dmesg
    assert "clock 24" not in elsewhere.dmesg


def test_a_driver_gets_past_its_probe_on_the_made_up_board(run: Run) -> None:
    system = run(text(), None)
    bound = [device.name for device in system.kernel.part(Devices).by_address.values() if device.is_bound]
    assert bound == ["10000000.timer"]


def test_the_same_window_cannot_be_requested_twice(run: Run) -> None:
    second = TIMER.removeprefix(GIC).replace("timer@10000000", "twin@10000000")
    system = run(text(), TIMER + second)
    assert (
        "acme-timer 10000000.twin: error -EBUSY: can't request region for resource [mem 0x10000000-0x10000fff]"
        in system.dmesg
    )


def test_going_back_to_a_snapshot_takes_a_binding_back(run: Run) -> None:
    system = run(text(), TIMER)
    before = system.machine.digest()
    saved = system.snapshot()
    system.irq.fire(system.irq.number(37))
    assert system.mmio.peek(0x1000_0004) == 1
    system.restore(saved)
    assert system.mmio.peek(0x1000_0004) == 0
    assert system.machine.digest() == before


def test_every_access_to_a_window_is_recorded_with_its_place(run: Run) -> None:
    system = run(text(), TIMER)
    first = system.mmio.log[0]
    assert (first.is_write, first.address, first.size, first.value, first.el) == (True, 0x1000_0000, 4, 24, 1)
    assert "probe" in system.mmio.describe(first)


def test_a_driver_that_waits_for_a_bit_nobody_sets_is_stopped_with_the_register(run: Run) -> None:
    loop = text().replace("writel(clock, state->regs);", "while (!(readl(state->regs + 8) & 1)) ;")
    with pytest.raises(
        Stuck, match=r"probe.* waits for ever on the register at 0x10000008 \(/timer@10000000 \+0x8\), which reads 0x0"
    ):
        run(loop, TIMER)
