"""Devices behind units of the host's IOMMU core: a driver in C that says what the core asks of it, and a model of its hardware."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pkvm_emu
from pkvm_emu.devices.model import DmaError, Model, Reg
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.bus_masters import BusMasters
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.kernel.exports.make_index import index
from pkvm_emu.kernel.exports.pm import pm_runtime_idle, pm_runtime_resume
from pkvm_emu.kernel.iommu_clients import READ, IommuClients
from pkvm_emu.kernel.iommu_domains import IommuDomains, pick_size
from pkvm_emu.kernel.unload import unload_module
from pkvm_emu.system import System

Said = Callable[[System], list[str]]
Boot = Callable[..., System]

HEAD = """
#include <linux/notifier.h>
struct iommu_ops;
struct iommu_device { struct list_head list; const void *ops; void *fwnode; struct device *dev; void *group; u32 max_pasids; };
struct iommu_fwspec { void *fwnode; u32 flags; unsigned int num_ids; u32 ids[]; };
struct dev_iommu { u64 lock[6]; void *fault; struct iommu_fwspec *fwspec; struct iommu_device *unit; void *priv; u32 max_pasids; };
struct domain_ops {
	int (*attach_dev)(void *domain, struct device *dev); void *pasid;
	int (*map_pages)(void *domain, unsigned long iova, phys_addr_t pa, size_t size, size_t count, int prot, gfp_t gfp,
		size_t *done);
	size_t (*unmap_pages)(void *domain, unsigned long iova, size_t size, size_t count, void *gather);
	void *four[8]; void (*free)(void *domain); void *rest[7];
};
struct ops {
	void *capable, *info; void *(*domain_alloc)(unsigned int type); void *user, *paging, *sva;
	void *(*probe_device)(struct device *dev); void (*release_device)(struct device *dev); void *finalize;
	void *(*device_group)(struct device *dev); void (*get_resv_regions)(struct device *dev, struct list_head *head);
	int (*of_xlate)(struct device *dev, const struct of_phandle_args *args); void *four[4];
	int (*def_domain_type)(struct device *dev); void *pasid; const struct domain_ops *domain; unsigned long sizes;
	struct module *owner; void *rest[9];
};
struct domain { unsigned int type; const void *ops, *dirty, *owner; unsigned long sizes; u64 start, end; bool force; u64 rest[7]; };
int iommu_device_register(struct iommu_device *unit, const void *ops, struct device *hwdev);
void iommu_device_unregister(struct iommu_device *unit);
int iommu_fwspec_add_ids(struct device *dev, const u32 *ids, int count);
void dev_iommu_priv_set(struct device *dev, void *priv);
void *generic_device_group(struct device *dev);
void *iommu_alloc_resv_region(phys_addr_t start, size_t size, int prot, u32 type, gfp_t gfp);
void *iommu_get_domain_for_dev(struct device *dev);
struct device *driver_find_device(const struct device_driver *drv, struct device *start, const void *data,
	int (*match)(struct device *dev, const void *data));
int device_match_fwnode(struct device *dev, const void *fwnode);
int device_match_of_node(struct device *dev, const void *node);
bool of_dma_is_coherent(struct device_node *node);
"""
#: What is otherwise on 6.6.
OLDER = {
    "struct device *dev; void *group; u32 max_pasids; }": "struct device *dev; u32 max_pasids; }",
    "struct iommu_fwspec { void *fwnode;": "struct iommu_fwspec { const void *ops; void *fwnode;",
    "u64 lock[6]; void *fault;": "u64 lock[6]; void *fault, *iopf;",
    "void *pasid;\n\tint (*map_pages)": "void *pasid, *one;\n\tint (*map_pages)",
    "\tsize_t (*unmap_pages)": "\tvoid *other; size_t (*unmap_pages)",
    "void *four[8]; void (*free)(void *domain); void *rest[7];": "void *four[7]; void (*free)(void *domain);",
    "(unsigned int type); void *user, *paging, *sva;": "(unsigned int type);",
    "void *finalize;\n": "void *finalize, *platform;\n",
    "struct module *owner; void *rest[9];": "struct module *owner;",
    "const void *ops, *dirty, *owner; unsigned long sizes;": "const void *ops; unsigned long sizes;",
}
DRIVER = (
    HEAD
    + """
static void __iomem *regs;
static struct iommu_device unit = { .max_pasids = 8 };
static struct domain made;
static struct platform_driver acme;
static int xlate(struct device *dev, const struct of_phandle_args *args)
{
	pr_info("=xlate %s %d %x\\n", dev_name(dev), args->args_count, args->args[0]);
	return XLATE iommu_fwspec_add_ids(dev, (u32 *)args->args, 1);
}
static void *probe_device(struct device *dev)
{
	struct iommu_fwspec *spec = dev->iommu->fwspec;
	struct device *own = driver_find_device(&acme.driver, NULL, spec->fwnode, device_match_fwnode);

	pr_info("=probe %u %x %x own %d\\n", spec->num_ids, spec->ids[0], spec->ids[spec->num_ids - 1],
		own == driver_find_device(&acme.driver, NULL, own->of_node, device_match_of_node));
	dev_iommu_priv_set(dev, &made);
	return PROBE;
}
static void *group(struct device *dev)
{
	pr_info("=group %d\\n", dev->iommu->unit == &unit && dev->iommu->priv == &made);
	return generic_device_group(dev);
}
static void *alloc(unsigned int type) { pr_info("=alloc %u\\n", type); return REFUSED(type) ? ERR_PTR(-95) : &made; }
static void regions(struct device *dev, struct list_head *head)
{
	list_add_tail(iommu_alloc_resv_region(0xfffff000, 0x1000, 3, 2, GFP_KERNEL), head);
}
static int attach(void *domain, struct device *dev)
{
	struct domain *d = domain;

	pr_info("=attach %u %lx %d %d\\n", d->type, d->sizes, dev->iommu->max_pasids, dev->iommu_group != NULL);
	writel(d->type == 4, regs + 0x18);
	return ATTACH;
}
static int map(void *domain, unsigned long iova, phys_addr_t pa, size_t size, size_t count, int prot, gfp_t gfp, size_t *done)
{
	pr_info("=map %lx %lx %lu %d\\n", iova, size, count, prot);
	writeq(iova, regs);
	writeq(pa, regs + 8);
	writel(1, regs + 0x10);
	*done += MAPPED;
	return MAPPED ? 0 : -ENOMEM;
}
static size_t unmap(void *domain, unsigned long iova, size_t size, size_t count, void *gather)
{
	pr_info("=unmap %lx %lx\\n", iova, size * count);
	writel(0, regs + 0x10);
	return size * count;
}
static void release(struct device *dev) { pr_info("=release\\n"); }
static void free_domain(void *domain) { pr_info("=free\\n"); }
static int kind(struct device *dev) { return KIND; }
static const struct domain_ops domain_ops = { .attach_dev = attach, .map_pages = map, .unmap_pages = unmap, .free = free_domain };
static const struct ops ops = {
	.of_xlate = xlate, .probe_device = probe_device, .device_group = group, .domain_alloc = alloc, .get_resv_regions = regions,
	.def_domain_type = kind, .release_device = release, .domain = &domain_ops, .sizes = 0x40201000, .owner = THIS_MODULE,
};
int pm_runtime_get_if_active(struct device *dev);
static irqreturn_t handle(int irq, void *data)
{
	int active = pm_runtime_get_if_active(data);

	pr_info("=fault, active %d\\n", active);
	if (active > 0)
		pm_runtime_put_sync(data);
	return IRQ_HANDLED;
}
static int suspend(struct device *dev)
{
	if (of_find_property(dev->of_node, "interrupts", NULL))
		pr_info("=suspend %d\\n", pm_runtime_get_if_active(dev));
	return 0;
}
static const struct { void *sleep[20]; int (*suspend)(struct device *dev); void *rest[2]; } pm = { .suspend = suspend };
static int probe(struct platform_device *pdev)
{
	regs = devm_platform_ioremap_resource(pdev, 0);
	pr_info("=coherent %d\\n", of_dma_is_coherent(pdev->dev.of_node));
	if (platform_get_irq_optional(pdev, 0) > 0 &&
			devm_request_irq(&pdev->dev, platform_get_irq(pdev, 0), handle, 0, "mmu", &pdev->dev))
		return -EINVAL;
	pm_runtime_enable(&pdev->dev);
	return iommu_device_register(&unit, &ops, &pdev->dev);
}
static void remove(struct platform_device *pdev) { iommu_device_unregister(&unit); }
static const struct of_device_id ids[] = { { .compatible = "acme,mmu" }, { } };
static struct platform_driver acme = {
	.probe = probe, .remove = (void *)remove, .driver = { .name = "acme-mmu", .of_match_table = ids, .pm = (void *)&pm }
};
module_platform_driver(acme);
"""
)
TREE = """/dts-v1/; / { #address-cells = <2>; #size-cells = <2>; COHERENT
mmu: mmu@10000000 { compatible = "acme,mmu"; reg = <0 0x10000000 0 0x1000>; #iommu-cells = <1>; NODE };
dma-master@10020000 { compatible = "pkvm-emu,dma-master"; reg = <0 0x10020000 0 0x1000>; suppliers = <&mmu>;
	IOMMUS pasid-num-bits = <2>; }; };"""
BASE = 0x1000_0000


class Mmu(Model):
    """One page, or everything."""

    COMPATIBLE = ("acme,mmu",)
    iova = Reg(0x00, width=64)
    pa = Reg(0x08, width=64)
    valid = Reg(0x10)
    bypass = Reg(0x18)

    def reset(self) -> None:
        self.streams: list[int] = []

    def translate(self, stream: int, address: int, is_write: bool) -> int:
        self.streams.append(stream)
        if self.bypass:
            return address
        if not self.valid or address & ~0xFFF != self.iova:
            if self.has_irq("fault"):
                self.irq("fault")
            raise DmaError("nothing is mapped there")
        return self.pa | address & 0xFFF


@pytest.fixture
def start(driver) -> Boot:
    def run(
        generation: str = "android16-6.12",
        iommus: str = "iommus = <&mmu 0x31>;",
        coherent: str = "dma-coherent;",
        node: str = "",
        cmdline: str = "",
        **words: str,
    ) -> System:
        chosen = {
            "XLATE": "",
            "PROBE": "&unit",
            "KIND": "0",
            "ATTACH": "0",
            "MAPPED": "size * count",
            "REFUSED": "!",
        } | words
        text = DRIVER
        for new, old in OLDER.items() if "6.6" in generation else ():
            assert new in text
            text = text.replace(new, old)
        for word, value in chosen.items():
            text = text.replace(word, value)
        tree = TREE.replace("IOMMUS", iommus).replace("COHERENT", coherent).replace("NODE", node)
        return pkvm_emu.boot(generation, [driver(text, generation)], cmdline, dtb=parse_source(tree), mmio=[Mmu])

    return run


GIC = "};\ngic: gic { #interrupt-cells = <3>; interrupt-controller;"
FAULTS = 'interrupt-parent = <&gic>; interrupts = <0 5 4>; interrupt-names = "fault";'


def device(system: System, name: str = "10020000.dma-master"):
    return next(one for one in system.kernel.part(Devices).by_address.values() if one.name == name)


@pytest.mark.parametrize("generation", ["android15-6.6", "android16-6.12"])
def test_a_master_is_translated_for_in_a_domain_of_its_own(start: Boot, said: Said, generation: str) -> None:
    system = start(generation)
    assert said(system) == [
        "coherent 1",
        "xlate 10020000.dma-master 1 31",
        "probe 1 31 31 own 1",
        "group 1",
        "alloc 3",
        "attach 3 40201000 4 1",
        # The highest page below 4 GiB is reserved; the master's DMA is coherent (4), and it only reads (1).
        "map ffffe000 1000 1 5",
        "unmap ffffe000 1000",
    ]
    assert "pkvm-emu-dma-master 10020000.dma-master: Adding to iommu group 0" in system.dmesg
    assert "acme-mmu 10000000.mmu: let dma-master@10020000 read its buffer at 0x" in system.dmesg
    assert "by DMA address 0xffffe000" in system.dmesg
    assert system.mmio.peek(0x1002_0000, 8) == 0xFFFF_E000
    assert list(system.mmio.model(BASE).streams) == [0x31]


def test_a_driver_may_ask_for_an_identity_domain(start: Boot, said: Said) -> None:
    system = start(KIND="4")
    assert said(system)[-2:] == ["alloc 4", "attach 4 40201000 4 1"]
    assert "read its buffer at 0x" in system.dmesg
    assert "by DMA address" not in system.dmesg
    assert "did not let" not in system.dmesg


def test_the_command_line_decides_where_the_driver_does_not(start: Boot, said: Said) -> None:
    assert "alloc 4" in said(start(cmdline="iommu.passthrough=1"))
    system = start(cmdline="iommu.passthrough=1", REFUSED="4 == ")
    assert [one for one in said(system) if one.startswith("alloc")] == ["alloc 4", "alloc 3"]
    assert (
        "Failed to allocate default IOMMU domain of type 4 for group 0 - Falling back to IOMMU_DOMAIN_DMA"
        in system.dmesg
    )


def test_several_numbers_of_a_master_are_all_noted(start: Boot, said: Said) -> None:
    system = start(iommus="iommus = <&mmu 0x31>, <&mmu 0x32>, <&mmu 0x33>;")
    assert "probe 3 31 33 own 1" in said(system)


@pytest.mark.parametrize(
    ("words", "error"), [({"XLATE": "-22 ?: "}, -22), ({"PROBE": "ERR_PTR(-19)"}, -19), ({"REFUSED": "1 | "}, -22)]
)
def test_a_driver_that_refuses_leaves_nothing_behind(start: Boot, words: dict[str, str], error: int) -> None:
    system = start(**words)
    one = device(system)
    memory = system.kernel.memory
    assert f"pkvm-emu-dma-master 10020000.dma-master: cannot be put behind 10000000.mmu: {error}" in system.dmesg
    assert memory.read_u64(one.address + one.layout.iommu_group) == 0
    assert not system.kernel.part(IommuClients).members
    assert not system.kernel.part(IommuClients).units
    if "XLATE" not in words:
        assert memory.read_u64(one.address + one.layout.iommu) == 0


def test_an_attach_that_fails_is_a_warning_and_the_domain_is_freed(start: Boot, said: Said) -> None:
    system = start(ATTACH="-12")
    assert said(system)[-2:] == ["release", "free"]
    assert "WARNING: " in system.dmesg
    assert "cannot be put behind 10000000.mmu: -12" in system.dmesg


def test_a_mapping_that_the_driver_refuses_leaves_no_address_in_use(start: Boot, said: Said) -> None:
    system = start(MAPPED="0")
    assert "gets no DMA address for its buffer" in system.dmesg
    assert list(system.kernel.part(IommuDomains).ranges.values()) == [4096]


def test_without_iommus_nobody_is_behind_the_unit(start: Boot, said: Said) -> None:
    system = start(iommus="", coherent="", node="dma-noncoherent;")
    assert said(system) == ["coherent 0"]
    assert "did not let dma-master@10020000" in system.dmesg


def test_what_a_unit_refuses_it_reports_before_it_loses_power(start: Boot, said: Said) -> None:
    system = start(iommus="", node=FAULTS + GIC)
    assert said(system) == ["coherent 1", "fault, active 1", "suspend 0"]


def test_the_nearest_word_about_coherence_counts(start: Boot, said: Said) -> None:
    assert said(start(node="dma-noncoherent;"))[0] == "coherent 0"
    assert said(start(coherent="", node="dma-coherent;"))[0] == "coherent 1"
    assert said(start(coherent=""))[0] == "coherent 0"


def test_a_unit_that_goes_releases_its_devices(start: Boot, said: Said) -> None:
    system = start()
    before, digest = system.snapshot(), system.machine.digest()
    unload_module(system.kernel, system.kernel.loader.modules["driver"])
    assert said(system)[-2:] == ["release", "free"]
    assert "10020000.dma-master: Removing from iommu group 0" in system.dmesg
    assert not system.kernel.part(IommuClients).groups
    system.restore(before)
    assert system.machine.digest() == digest


def test_other_lines_stop_with_what_is_not_known(start: Boot) -> None:
    with pytest.raises(ModuleError, match=r"the layout of struct dev_iommu of 6\.1 is not known"):
        start("android14-6.1")


def test_addresses_are_aligned_to_their_size_and_lie_below_those_in_use(start: Boot) -> None:
    system = start()
    clients, domains = system.kernel.part(IommuClients), system.kernel.part(IommuDomains)
    domain = clients.domain_of(device(system).address)
    taken = [domains.take(domain, size, 0xFFFF_FFFF) for size in (0x1000, 0x3000, 0x1000, 0x21000)]
    # Three pages take four; so many that no cache keeps them are not rounded up, but aligned.
    assert taken == [0xFFFF_E000, 0xFFFF_8000, 0xFFFF_D000, 0xFFFC_0000]
    assert domains.give_back(domain, 0xFFFF_D000)
    assert domains.take(domain, 0x1000, 0xFFFF_FFFF) == 0xFFFF_D000
    assert domains.take(domain, 0x10_0000, 0xF_FFFF) is None
    first = clients.map(device(system), 0x4080_0123, 0x1000, READ)
    assert first is not None
    # Two pages for what lies across a border, and the offset stays.
    assert (first.address & 0xFFF, first.size) == (0x123, 0x2000)


def test_large_pages_are_mapped_where_both_addresses_allow() -> None:
    sizes = 0x4020_1000
    assert pick_size(sizes, 0x20_0000, 0x4040_0000, 0x40_0000) == (0x20_0000, 2)
    assert pick_size(sizes, 0x1F_F000, 0x403F_F000, 0x40_1000) == (0x1000, 1)
    assert pick_size(sizes, 0x20_0000, 0x4040_1000, 0x40_0000) == (0x1000, 1024)
    assert pick_size(sizes, 0, 0, 0x3000) == (0x1000, 3)


def test_a_device_in_its_callback_is_neither_active_nor_suspended(start: Boot) -> None:
    system = start()
    kernel, unit = system.kernel, device(system, "10000000.mmu")
    kernel.part(BusMasters).resume(unit)
    unit.status = "suspending"
    from pkvm_emu.kernel.exports.pm import pm_runtime_get_if_active, pm_runtime_suspend

    assert pm_runtime_get_if_active(kernel, unit.address) == 0
    assert pm_runtime_resume(kernel, unit.address, 0) == -115
    unit.usage = 0
    assert pm_runtime_suspend(kernel, unit.address, 0) == -115
    assert pm_runtime_idle(kernel, unit.address, 0) == -11


def test_the_index_has_them() -> None:
    served = index()
    assert "io_pgtable_configure" in served["io_pgtable"]
    assert "iommu_fwspec_add_ids" in served["iommu_core"]
