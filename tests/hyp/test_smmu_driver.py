"""A driver of an SMMUv3 in C, on the model of one: its stream table, queues and page tables, and what devices reach by them."""

from __future__ import annotations

from errno import EINVAL, EPERM

import pytest
from iommu_modules import DOMAINS_EL1

from pkvm_emu.devices.model import DmaError
from pkvm_emu.devices.models.smmu_v3 import SmmuV3
from pkvm_emu.system import System, boot

BASE, IOMMU, STREAM, DOMAIN, IOVA = 0x1000_0000, 9, 5, 3, 0x4_0000_0000
READ_WRITE = 3
EL2 = """
#include <nvhe/iommu.h>
#include <linux/iommu.h>
#include <linux/arm-smccc.h>
#define REG32(at) (*(volatile u32 *)(regs + (at)))
#define REG64(at) (*(volatile u64 *)(regs + (at)))
#define CR0 0x20
#define CR0ACK 0x24
#define ADDR 0x0000fffffffff000UL
static const struct pkvm_module_ops *ops;
static unsigned long regs;
static u64 *strtab, *cmdq;
static u32 prod;
static struct kvm_hyp_iommu instance = { .power_domain = { .type = KVM_POWER_DOMAIN_HOST_HVC, .device_id = 3 } };
static void enable(u32 value)
{
	REG32(CR0) = value;
	while (REG32(CR0ACK) != value)
		;
}
static void command(u64 low, u64 high)
{
	volatile u64 *at = cmdq + 2 * (prod & 0xff);

	at[0] = low;
	at[1] = high;
	prod = (prod + 1) & 0x1ff;
	REG32(0x98) = prod;
	while (REG32(0x9c) != prod)
		;
}
static int start(void)
{
	int ret = ops->host_donate_hyp(0x10000, 32, true);

	if (!ret)
		ret = ops->create_private_mapping(0x10000000, 0x20000, PAGE_HYP_DEVICE, &regs);
	if (ret)
		return ret;
	strtab = ops->iommu_donate_pages_atomic(0);
	cmdq = ops->iommu_donate_pages_atomic(0);
	if (!strtab || !cmdq)
		return -ENOMEM;
	REG64(0x80) = ops->hyp_pa(strtab);
	REG32(0x88) = 6;
	REG64(0x90) = ops->hyp_pa(cmdq) | 8;
	enable(9);
	return ops->iommu_init_device(&instance);
}
static struct kvm_hyp_iommu *by_id(pkvm_handle_t id) { return id == 9 ? &instance : 0; }
static void free_domain(struct kvm_hyp_iommu_domain *d) { ops->iommu_reclaim_pages(d->priv, 0); }
static int attach_common(struct kvm_hyp_iommu_domain *d, u32 stream)
{
	volatile u64 *entry = strtab + 8 * stream;

	if (stream >= 64)
		return -EINVAL;
	entry[2] = (25UL | 1 << 6) << 32 | 1UL << 51;
	entry[3] = ops->hyp_pa(d->priv);
	entry[0] = 1 | 6 << 1;
	command(0x03 | (u64)stream << 32, 1);
	command(0x46, 0);
	return 0;
}
static int detach(struct kvm_hyp_iommu *i, struct kvm_hyp_iommu_domain *d, u32 stream, u32 pasid)
{
	*(volatile u64 *)(strtab + 8 * stream) = 1;
	command(0x03 | (u64)stream << 32, 1);
	command(0x46, 0);
	return 0;
}
static volatile u64 *leaf(u64 *table, u64 iova, bool make)
{
	int shift;

	for (shift = 30; shift > 12; shift -= 9) {
		volatile u64 *entry = table + (iova >> shift & 0x1ff);

		if (!*entry) {
			void *page = make ? ops->iommu_donate_pages(0, 1) : 0;

			if (!page)
				return 0;
			*entry = ops->hyp_pa(page) | 3;
		}
		table = ops->hyp_va(*entry & ADDR);
	}
	return table + (iova >> 12 & 0x1ff);
}
static int map(struct kvm_hyp_iommu_domain *d, unsigned long iova, phys_addr_t pa, size_t size, size_t count, int prot,
		size_t *total)
{
	for (*total = 0; count--; *total += 4096) {
		volatile u64 *entry = leaf(d->priv, iova + *total, true);

		if (size != 4096)
			return -EINVAL;
		if (!entry)
			return -ENOMEM;
		*entry = (pa + *total) | 1 << 10 | (u64)(prot & 3) << 6 | 3;
	}
	return 0;
}
static u64 take(struct kvm_hyp_iommu_domain *d, unsigned long iova)
{
	volatile u64 *entry = leaf(d->priv, iova, false);
	u64 pa = entry ? *entry & ADDR : 0;

	if (pa)
		*entry = 0;
	return pa;
}
static phys_addr_t translate(struct kvm_hyp_iommu_domain *d, unsigned long iova)
{
	volatile u64 *entry = leaf(d->priv, iova, false);

	return entry && *entry ? (*entry & ADDR) | (iova & 0xfff) : 0;
}
static void sync(struct kvm_hyp_iommu_domain *d, struct iommu_iotlb_gather *g)
{
	command(0x28, 0);
	command(0x46, 0);
}
static int suspend(struct kvm_hyp_iommu *i) { enable(0); return 0; }
static int resume(struct kvm_hyp_iommu *i) { enable(9); return 0; }
#ifdef PKVM_EMU_IOMMU_INIT_ARG
static int init(unsigned long arg) { return start(); }
static int alloc_domain(struct kvm_hyp_iommu_domain *d, u32 type)
#else
static int init(void) { return start(); }
static int alloc_domain(struct kvm_hyp_iommu_domain *d, int type)
#endif
{
	d->priv = ops->iommu_donate_pages(0, 1);
	return d->priv ? 0 : -ENOMEM;
}
#ifdef PKVM_EMU_IOMMU_INIT_ARG
static int attach(struct kvm_hyp_iommu *i, struct kvm_hyp_iommu_domain *d, u32 e, u32 p, u32 b)
{
	return attach_common(d, e);
}
static size_t unmap(struct kvm_hyp_iommu_domain *d, unsigned long iova, size_t size, size_t count,
		struct iommu_iotlb_gather *g, struct kvm_iommu_paddr_cache *cache)
{
	size_t done;

	for (done = 0; done < size * count; done += 4096) {
		u64 pa = take(d, iova + done);

		if (!pa)
			break;
		cache->paddr[cache->ptr] = pa;
		cache->pgsize[cache->ptr++] = 4096;
	}
	return done;
}
#else
static int attach(struct kvm_hyp_iommu *i, struct kvm_hyp_iommu_domain *d, u32 e, u32 p, u32 b, unsigned long flags)
{
	return attach_common(d, e);
}
static size_t unmap(struct kvm_hyp_iommu_domain *d, unsigned long iova, size_t size, size_t count,
		struct iommu_iotlb_gather *g)
{
	size_t done;

	for (done = 0; done < size * count; done += 4096) {
		u64 pa = take(d, iova + done);

		if (!pa)
			break;
		ops->pkvm_unuse_dma(pa, 4096);
	}
	return done;
}
#endif
struct kvm_iommu_ops table = {
	.init = init, .get_iommu_by_id = by_id, .alloc_domain = alloc_domain, .free_domain = free_domain,
	.attach_dev = attach, .detach_dev = detach, .map_pages = map, .unmap_pages = unmap, .iova_to_phys = translate,
	.iotlb_sync = sync, .suspend = suspend, .resume = resume,
};
int hyp_init(const struct pkvm_module_ops *o) { ops = o; return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { ((u64 *)regs)[0] = 0; }
"""


@pytest.fixture(params=["15", "16"])
def system(request, c_module) -> System:
    ko = c_module(el1=DOMAINS_EL1, el2=EL2, generation=request.param)
    return boot(request.param, [ko], mmio=[(BASE, 0x2_0000, "smmu-v3")])


class Host:
    """What the host asks of the core, with the memory that this takes."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.smmu = system.mmio.model(BASE)
        assert isinstance(self.smmu, SmmuV3)

    def call(self, name: str, *args: int) -> int:
        """x1 of a hypercall; where the driver lacks memory it is given and the call is made again."""
        while True:
            result = self.system.kernel.hvc(
                0xC600_0000 | self.system.generation.hypercalls[f"host_iommu_{name}"], *args
            )
            if result[2] & 0xFF != 1:
                return (result[1] ^ 1 << 63) - (1 << 63)
            if name == "map_pages" and result[1]:
                args = (
                    args[0],
                    args[1] + result[1],
                    args[2] + result[1],
                    args[3],
                    args[4] - result[1] // 4096,
                    args[5],
                )
            refill = self.system.generation.hypercalls["hyp_alloc_mgt_refill"]
            assert self.system.kernel.hvc(0xC600_0000 | refill, 1, self.page(), 1)[1] == 0

    def page(self) -> int:
        pa = self.system.kernel.pages.alloc_pages(0, zero=True)
        assert pa is not None
        return pa

    def dma(self, address: int, is_write: bool = True) -> int | str:
        """The physical address that the device reaches, or why it reaches none."""
        try:
            return self.smmu.translate(STREAM, address, is_write)
        except DmaError as error:
            return str(error).partition(": ")[2].partition(" for ")[0]


@pytest.fixture
def host(system: System) -> Host:
    host = Host(system)
    assert host.call("alloc_domain", DOMAIN, 1) == 0
    assert host.call("attach_dev", IOMMU, DOMAIN, STREAM, 0, 0, 0) == 0
    return host


def test_the_driver_enables_the_smmu_and_keeps_its_registers(system: System) -> None:
    smmu = system.mmio.model(BASE)
    assert smmu.cr0.describe() == "CMDQEN SMMUEN"
    assert system.host.read(BASE, 4).fault is not None
    assert {one.el for one in system.mmio.log} == {2}


def test_a_device_reaches_what_is_mapped_for_it(host: Host) -> None:
    assert host.dma(IOVA) == "F_TRANSLATION"
    pages = [host.page(), host.page()]
    assert host.call("map_pages", DOMAIN, IOVA, pages[0], 4096, 1, 1) == 4096
    assert host.call("map_pages", DOMAIN, IOVA + 4096, pages[1], 4096, 1, READ_WRITE) == 4096
    assert [host.dma(IOVA + 8, False), host.dma(IOVA + 4096)] == [pages[0] + 8, pages[1]]
    assert host.dma(IOVA) == "F_PERMISSION"
    assert host.call("iova_to_phys", DOMAIN, IOVA + 4096 + 5) == pages[1] + 5
    assert host.system.hyp.ownership.host_donate_hyp(pages[1] >> 12, 1) != 0
    assert host.call("unmap_pages", DOMAIN, IOVA, 4096, 2) == 8192
    assert host.dma(IOVA + 4096) == "F_TRANSLATION"
    assert host.system.hyp.ownership.host_donate_hyp(pages[1] >> 12, 1) == 0
    commands = dict(host.smmu.commands)
    assert (commands["CFGI_STE"], commands["TLBI_S12_VMALL"], commands["SYNC"]) == (1, 1, 2)


def test_pages_of_others_are_out_of_reach(host: Host) -> None:
    page = host.page()
    assert host.system.hyp.ownership.host_donate_hyp(page >> 12, 1) == 0
    assert host.call("map_pages", DOMAIN, IOVA, page, 4096, 1, READ_WRITE) == 0
    assert host.dma(IOVA) == "F_TRANSLATION"


def test_a_stream_that_is_detached_is_cut_off(host: Host) -> None:
    assert host.call("map_pages", DOMAIN, IOVA, host.page(), 4096, 1, READ_WRITE) == 4096
    assert host.call("attach_dev", IOMMU, DOMAIN, 64, 0, 0, 0) == -EINVAL
    assert host.call("detach_dev", IOMMU, DOMAIN, STREAM, 0) == 0
    assert host.dma(IOVA) == "the stream is set to abort"
    assert host.call("free_domain", DOMAIN) == 0


def test_suspending_stops_and_resuming_starts_it(host: Host) -> None:
    power = host.system.generation.hypercalls["host_hvc_pd"]
    for on, shown in ((0, "0"), (1, "CMDQEN SMMUEN")):
        assert host.system.hvc(power, 3, on).x1 == 0
        assert host.smmu.cr0.describe() == shown


def test_a_snapshot_brings_the_hardware_back_with_the_driver(host: Host) -> None:
    system = host.system
    before, digest = system.snapshot(), system.machine.digest()
    assert host.call("map_pages", DOMAIN, IOVA, host.page(), 4096, 1, READ_WRITE) == 4096
    assert host.call("detach_dev", IOMMU, DOMAIN, STREAM, 0) == 0
    system.restore(before)
    assert system.machine.digest() == digest
    assert host.call("detach_dev", IOMMU, DOMAIN, STREAM, 0) == 0
    assert host.call("detach_dev", IOMMU, DOMAIN, STREAM, 0) == -EINVAL
    assert host.call("attach_dev", IOMMU + 1, DOMAIN, STREAM, 0, 0, 0) in (-EINVAL, -EPERM)
