"""The made-up board's bus masters: devices that are powered on demand are used once after the boot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.bus_masters import BusMasters
from pkvm_emu.kernel.devicetree.source import to_source
from pkvm_emu.system import System

Driver = Callable[..., ModuleFile]
Said = Callable[[System], list[str]]

TEXT = """
struct dev_pm_ops {
	void *of_sleep[20];
	int (*runtime_suspend)(struct device *dev), (*runtime_resume)(struct device *dev), (*runtime_idle)(struct device *dev);
};
static int resume(struct device *dev) { pr_info("=resume\\n"); return RESULT; }
static int suspend(struct device *dev) { pr_info("=suspend\\n"); return 0; }
static const struct dev_pm_ops pm = { .runtime_suspend = suspend, .runtime_resume = resume };
static int probe(struct platform_device *pdev)
{
	BEFORE
	pm_runtime_enable(&pdev->dev);
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,smmu" }, { } };
static struct platform_driver acme = {
	.probe = probe, .driver = { .name = "smmu", .of_match_table = ids, .pm = &pm }
};
module_platform_driver(acme);
"""
PHANDLES = """
static int probe(struct platform_device *pdev)
{
	struct device_node *node = pdev->dev.of_node;
	struct device_node *sync = of_parse_phandle(node, "smmu_syncs", 0), *cons = of_parse_phandle(node, "dma-cons", 0);
	pr_info("=%pOFn %pOFn\\n", sync, cons);
	return 0;
}
static const struct of_device_id syncs[] = { { .compatible = "acme,smmu_sync" }, { } };
static const struct of_device_id ids[] = { { .compatible = "acme,smmu" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "smmu", .of_match_table = ids } };
static struct platform_driver other = { .probe = probe, .driver = { .name = "sync", .of_match_table = syncs } };
static int __init start(void) { return platform_driver_register(&acme) ?: platform_driver_register(&other); }
module_init(start);
"""


#: What SET_LATE_SYSTEM_SLEEP_PM_OPS and SET_RUNTIME_PM_OPS set, in the declared order and in orders of randomised builds.
SLEEP = "static int late_suspend(struct device *dev) { return 1; }\nstatic int late_resume(struct device *dev) { return 1; }\n"
DECLARED = {
    8: "late_suspend",
    9: "late_resume",
    10: "late_suspend",
    11: "late_resume",
    12: "late_suspend",
    13: "late_resume",
}
ORDERS = {
    "declared": {**DECLARED, 20: "suspend", 21: "resume"},
    "swapped": {**DECLARED, 20: "resume", 21: "suspend"},
    "moved": {0: "late_suspend", 3: "suspend", 7: "late_resume", 9: "late_suspend", 14: "resume", 15: "late_resume",
              20: "late_resume", 22: "late_suspend"},
}  # fmt: skip


def text(result: int = 0, before: str = "") -> str:
    return TEXT.replace("RESULT", str(result)).replace("BEFORE", before)


def test_a_device_with_runtime_pm_is_used_once_after_the_boot(driver: Driver, said: Said) -> None:
    system = pkvm_emu.boot(modules=[driver(text())])
    assert said(system) == ["resume", "suspend"]
    master = system.device_tree.find("/dma-master@10010000")
    assert master is not None
    assert master.strings("compatible") == ["pkvm-emu,dma-master"]
    # The master was told where its buffer is.
    told = [access for access in system.mmio.log if access.address == 0x1001_0000]
    assert [(access.is_write, access.size, access.value in system.machine.ram) for access in told] == [(True, 8, True)]


def test_a_resume_that_fails_is_in_the_log_and_nothing_else_happens(driver: Driver, said: Said) -> None:
    system = pkvm_emu.boot(modules=[driver(text(result=-5))])
    assert said(system) == ["resume"]
    assert "smmu 10000000.smmu: cannot be resumed: -5" in system.dmesg


def test_power_can_come_and_go_from_python(driver: Driver, said: Said) -> None:
    system = pkvm_emu.boot(modules=[driver(text())])
    masters = system.kernel.part(BusMasters)
    assert (masters.resume("10000000.smmu"), masters.suspend("10000000.smmu")) == (0, 0)
    assert said(system) == ["resume", "suspend"] * 2
    with pytest.raises(UsageError, match=r"^no device 'smmu'; there are: 10000000\.smmu$"):
        masters.resume("smmu")


def test_what_python_did_to_power_is_undone_by_a_restore(driver: Driver) -> None:
    system = pkvm_emu.boot(modules=[driver(text())])
    before, digest = system.snapshot(), system.machine.digest()
    system.kernel.part(BusMasters).resume("10000000.smmu")
    assert system.machine.digest() != digest
    system.restore(before)
    assert system.machine.digest() == digest


def test_a_board_without_the_node_has_no_users(driver: Driver, said: Said) -> None:
    module = driver(text())
    board = pkvm_emu.boot(modules=[module]).device_tree
    board.children = [node for node in board.children if node.base_name != "dma-master"]
    assert "dma-master" not in to_source(board)
    assert said(pkvm_emu.boot(modules=[module], dtb=board)) == []


def test_a_driver_without_runtime_pm_gets_no_master(driver: Driver) -> None:
    system = pkvm_emu.boot(modules=[driver(PHANDLES)])
    assert not [node for node in system.device_tree.walk() if node.base_name == "dma-master"]


def test_a_phandle_called_like_a_node_means_that_node_and_any_other_the_next_one(driver: Driver, said: Said) -> None:
    system = pkvm_emu.boot(modules=[driver(PHANDLES)])
    # Each in the order of the registration: the SMMU refers to the sync block, which does not refer to itself.
    assert said(system) == ["smmu_sync smmu_sync", "(null) smmu"]


def test_a_region_belongs_to_one_device_until_it_is_given_back(driver: Driver, said: Said) -> None:
    before = """
    struct resource *res = platform_get_resource(pdev, IORESOURCE_MEM, 0);
    struct resource *got = __devm_request_region(&pdev->dev, &iomem_resource, res->start, 4096, "first");
    struct resource *second = __devm_request_region(&pdev->dev, &iomem_resource, res->start + 16, 16, "second");
    pr_info("=%d %d %d\\n", got->start == res->start, got->end == res->start + 4095, second == NULL);
    __devm_release_region(&pdev->dev, &iomem_resource, res->start, 4096);
    pr_info("=%d\\n", __devm_request_region(&pdev->dev, &iomem_resource, res->start + 16, 16, "third") != NULL);
    """
    declarations = """
    extern struct resource iomem_resource;
    struct resource *__devm_request_region(struct device *dev, struct resource *parent, resource_size_t start,
        resource_size_t n, const char *name);
    void __devm_release_region(struct device *dev, struct resource *parent, resource_size_t start, resource_size_t n);
    """
    system = pkvm_emu.boot(modules=[driver(declarations + text(before=before))])
    assert said(system)[:2] == ["1 1 1", "1"]


@pytest.mark.parametrize("order", ORDERS)
def test_runtime_callbacks_are_found_in_a_shuffled_structure(driver: Driver, said: Said, order: str) -> None:
    slots = ", ".join(f"[{slot}] = {name}" for slot, name in ORDERS[order].items())
    shuffled = TEXT.replace(
        "static const struct dev_pm_ops pm = { .runtime_suspend = suspend, .runtime_resume = resume };", ""
    )
    source = shuffled.replace(
        "static int probe",
        f"{SLEEP}static int (*const pm[23])(struct device *dev) = {{ {slots} }};\nstatic int probe",
        1,
    )
    source = source.replace(".pm = &pm", ".pm = (void *)pm").replace("RESULT", "0").replace("BEFORE", "")
    assert said(pkvm_emu.boot(modules=[driver(source)])) == ["resume", "suspend"]
