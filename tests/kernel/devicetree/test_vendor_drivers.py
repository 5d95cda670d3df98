"""What pKVM drivers of other vendors do at EL1, done by small ones of our own: firmware in reserved memory, work on every CPU,
an SMMU that announces itself, notifiers and memory facts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pkvm_emu
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.addresses import windows
from pkvm_emu.kernel.exports.notifiers import call_chain, chain_head
from pkvm_emu.kernel.iommu_clients import IommuUnits
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

Driver = Callable[..., ModuleFile]
Run = Callable[..., System]
Said = Callable[[System], list[str]]
GENERATIONS = ("android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12")
#: A loader of a hypervisor plug-in: the binary lies in reserved memory, its entry is computed with kernel offsets.
LOADER = """
#include <linux/arm-smccc.h>
#include <linux/smp.h>
extern u64 kimage_vaddr;
static int cpus;
static void count(void *discard) { cpus++; }
static int probe(struct platform_device *pdev)
{
	struct device_node *memory = of_parse_phandle(pdev->dev.of_node, "memory_region", 0);
	struct resource res;

	if (!memory || of_address_to_resource(memory, 0, &res))
		return -ENODEV;
	on_each_cpu(count, NULL, 1);
	pr_info("=%llx bytes on %d, image %d\\n", (u64)resource_size(&res), cpus,
		kimage_vaddr - kimage_voffset == memstart_addr + 0x200000);
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,plug-in" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "plug-in", .of_match_table = ids } };
module_platform_driver(acme);
"""
SMMU = """
#include <linux/notifier.h>
struct iommu_device { struct list_head list; const void *ops; void *fwnode; struct device *dev; };
int iommu_device_register(struct iommu_device *unit, const void *ops, struct device *hwdev);
void iommu_device_unregister(struct iommu_device *unit);
int iommu_device_sysfs_add(struct iommu_device *unit, struct device *parent, const void *groups, const char *fmt, ...);
void *iommu_get_domain_for_dev(struct device *dev);
int driver_for_each_device(struct device_driver *drv, struct device *start, void *data, int (*fn)(struct device *, void *));
int register_memory_notifier(struct notifier_block *nb);
phys_addr_t memblock_end_of_DRAM(void);
static const u64 ops[4];
static struct iommu_device unit;
static int hear(struct notifier_block *nb, unsigned long event, void *data)
{
	pr_info("=memory event %lu\\n", event);
	return NOTIFY_OK;
}
static struct notifier_block block = { .notifier_call = hear };
static int probe(struct platform_device *pdev)
{
	return iommu_device_sysfs_add(&unit, &pdev->dev, NULL, "smmu.%d", 1) ?: iommu_device_register(&unit, ops, &pdev->dev);
}
static int show(struct device *dev, void *data)
{
	pr_info("=has %s, domain %p\\n", dev_name(dev), iommu_get_domain_for_dev(dev));
	return 7;
}
static const struct of_device_id ids[] = { { .compatible = "acme,smmu" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "smmu", .of_match_table = ids } };
static int __init start(void)
{
	int ret = platform_driver_register(&acme);

	pr_info("=%d %d, RAM ends at %llx\\n", driver_for_each_device(&acme.driver, NULL, NULL, show),
		driver_for_each_device(NULL, NULL, NULL, show), (u64)memblock_end_of_DRAM());
	register_memory_notifier(&block);
	return ret;
}
module_init(start);
"""


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_plug_in_loader_finds_its_memory_and_every_cpu(driver: Driver, said: Said, generation: str) -> None:
    module = driver(LOADER, generation)
    system = pkvm_emu.boot(generation, modules=[module], profile=MachineProfile(ram_size=64 << 20, cpus=2))
    assert said(system) == ["200000 bytes on 2, image 1"]
    reserved = system.device_tree.child("reserved-memory")
    assert reserved is not None
    assert windows(reserved.children[0])[0].start in system.machine.ram


def test_a_unit_announces_itself_to_the_iommu_core(driver: Driver, said: Said) -> None:
    system = pkvm_emu.boot(modules=[driver(SMMU)])
    has, numbers = said(system)
    assert has.startswith("has 10000000.smmu, domain ")
    assert numbers == f"7 -22, RAM ends at {system.machine.ram.end:x}"
    ((operations, device),) = system.kernel.part(IommuUnits).units.values()
    assert operations
    assert system.kernel.describe(device) != ""
    call_chain(system.kernel, chain_head(system.kernel, "memory"), 3, 0)
    assert said(system)[-1] == "memory event 3"


def test_a_property_called_like_a_node_means_the_node_and_not_memory(driver: Driver, said: Said) -> None:
    text = """
static int probe(struct platform_device *pdev)
{
	struct device_node *store = of_parse_phandle(pdev->dev.of_node, "acme,mem", 0);

	pr_info("=%pOFn\\n", store);
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,unit" }, { } };
static struct platform_driver acme = { .probe = probe, .driver = { .name = "unit", .of_match_table = ids } };
static int __init start(void)
{
	return of_find_compatible_node(NULL, NULL, "acme,mem") ? platform_driver_register(&acme) : -ENODEV;
}
module_init(start);
"""
    assert said(pkvm_emu.boot(modules=[driver(text)])) == ["mem"]


POWER = """
int pm_runtime_force_suspend(struct device *dev);
int pm_runtime_force_resume(struct device *dev);
static int fail;
static int resume(struct device *dev) { pr_info("=resume\\n"); return 0; }
static int suspend(struct device *dev) { pr_info("=suspend\\n"); return fail; }
static int (*const pm[23])(struct device *dev) = { [20] = suspend, [21] = resume };
static int probe(struct platform_device *pdev)
{
	struct device *dev = &pdev->dev;

	pm_runtime_enable(dev);
	pm_runtime_get_sync(dev);
	fail = -EBUSY;
	pr_info("=refused %d\\n", pm_runtime_force_suspend(dev));
	fail = 0;
	pr_info("=forced %d\\n", pm_runtime_force_suspend(dev));
	pr_info("=off %d\\n", pm_runtime_get_sync(dev));
	pm_runtime_put_sync(dev);
	pr_info("=back %d\\n", pm_runtime_force_resume(dev));
	return 0;
}
static const struct of_device_id ids[] = { { .compatible = "acme,power" }, { } };
static struct platform_driver acme = {
	.probe = probe, .driver = { .name = "power", .of_match_table = ids, .pm = (void *)pm }
};
module_platform_driver(acme);
"""


def test_a_device_can_be_suspended_by_force(run: Run, said: Said) -> None:
    system = run(POWER, 'unit@10000000 { compatible = "acme,power"; reg = <0 0x10000000 0 0x1000>; };')
    assert said(system) == ["resume", "suspend", "refused -16", "suspend", "forced 0", "off -13", "resume", "back 0"]
