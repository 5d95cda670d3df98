"""IOMMU drivers in C, one for each generation of the core: they write down every call and answer as they are told.

``notes`` holds eight words a call: which function, and up to seven arguments. ``answer`` is what functions that can fail return,
``room`` how many bytes ``map_pages`` maps at most.
"""

from __future__ import annotations

from pkvm_emu.system import System

_U64 = (1 << 64) - 1
_LOG = """
#include <nvhe/iommu.h>
#include <linux/iommu.h>
static const struct pkvm_module_ops *ops;
static u64 notes[2048], noted;
static u64 answer, room = ~0UL, page_order;
#define NOTE(...) NOTE_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0, 0)
#define NOTE_(a, b, c, d, e, f, g, h, ...) note(a, b, c, d, e, f, g, h)
static void note(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h)
{
	volatile u64 *at = notes + noted;

	if (noted + 8 > 2048)
		return;
	at[0] = a; at[1] = b; at[2] = c; at[3] = d; at[4] = e; at[5] = f; at[6] = g; at[7] = h;
	noted += 8;
}
int hyp_init(const struct pkvm_module_ops *o) { ops = o; return 0; }
"""
_CONTROL = """
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;

	x[0] = 0;
	switch (x[1]) {
	case 0: x[1] = (u64)&DRIVER; x[2] = (u64)notes; x[3] = (u64)&answer; x[4] = (u64)&room; x[5] = (u64)&INSTANCE; break;
	case 1: x[1] = noted; noted = 0; break;
	case 2: x[1] = *(volatile u64 *)x[2]; break;
	case 3: *(volatile u64 *)x[2] = x[3]; break;
	case 4: x[1] = SNAPSHOT; break;
	case 5: x[1] = INIT_DEVICE; break;
	case 6: x[1] = ops->host_donate_hyp(x[2], 1 DONATE_ARG); break;
	case 7: x[1] = ops->hyp_donate_host(x[2], 1); break;
	case 20: x[1] = REGISTER_RESET; break;
	case 21: x[1] = INIT_SCMI; break;
	}
}
"""

INIT, VALIDATE, CHILD, PREPARE, APPLY, COMPLETE, SUSPEND, RESUME, DABT = range(1, 10)
BY_ID, ALLOC, FREE, ATTACH, DETACH, MAP, UNMAP, TRANSLATE, SYNC, IDMAP, BLOCK, TOKEN, RESET = range(11, 24)

#: What the drivers give the host for a load from their registers.
EMULATED = 0x77
DEVICES = (
    _LOG
    + """
static int init(void *data, size_t size) { NOTE(1, (u64)data, size, *(u64 *)data); return answer; }
static int validate(struct pkvm_iommu *d) { NOTE(2, (u64)d, d->id, d->pa, d->size, d->flags, (u64)d->parent); return answer; }
static int validate_child(struct pkvm_iommu *d, struct pkvm_iommu *c) { NOTE(3, d->id, c->id); return 0; }
static void prepare(phys_addr_t s, phys_addr_t e, enum kvm_pgtable_prot p) { NOTE(4, s, e, p); }
static void apply(struct pkvm_iommu *d, phys_addr_t s, phys_addr_t e) { NOTE(5, d->id, s, e); }
static void complete(struct pkvm_iommu *d) { NOTE(6, d->id); }
static int suspend(struct pkvm_iommu *d) { NOTE(7, d->id, d->powered); return answer; }
static int resume(struct pkvm_iommu *d) { NOTE(8, d->id, d->powered); return answer; }
static bool dabt(struct pkvm_iommu *d, struct kvm_cpu_context *c, u32 esr, size_t off)
{
	NOTE(9, d->id, off, esr >> 26);
	((u64 *)c)[0] = 0x77;
	return !answer;
}
static const struct pkvm_iommu_ops table = {
	init, validate, validate_child, prepare, apply, complete, suspend, resume, dabt, 24,
};
struct pkvm_iommu_driver driver = { .ops = &table };
#define DRIVER driver
#define INSTANCE table
#define SNAPSHOT 0
#define INIT_DEVICE 0
#define INIT_SCMI 0
#define REGISTER_RESET 0
#define DONATE_ARG
"""
    + _CONTROL
)

DOMAINS = (
    _LOG
    + """
static struct kvm_hyp_iommu instance = { .power_domain = { .type = KVM_POWER_DOMAIN_HOST_HVC, .device_id = 3 } };
#ifdef PKVM_EMU_IOMMU_INIT_ARG
static int init(unsigned long arg) { NOTE(1, arg); return answer; }
#else
static int init(void) { NOTE(1); return answer; }
#endif
static struct kvm_hyp_iommu *by_id(pkvm_handle_t id) { NOTE(11, id); return id == 9 ? &instance : 0; }
#ifdef PKVM_EMU_IOMMU_INIT_ARG
#define TYPE u32
#define FLAGS
#define FLAG 0
#define CACHE , struct kvm_iommu_paddr_cache *cache
#else
#define TYPE int
#define FLAGS , unsigned long flags
#define FLAG flags
#define CACHE
#endif
static int alloc_domain(struct kvm_hyp_iommu_domain *d, TYPE type)
{
	NOTE(12, (u64)d, d->domain_id, type);
	if (page_order && !d->priv)
		d->priv = ops->iommu_donate_pages(page_order - 1, 1);
	return page_order && !d->priv ? -ENOMEM : answer;
}
static void free_domain(struct kvm_hyp_iommu_domain *d) { NOTE(13, (u64)d, d->domain_id); }
static int attach(struct kvm_hyp_iommu *i, struct kvm_hyp_iommu_domain *d, u32 e, u32 p, u32 b FLAGS)
{
	NOTE(14, (u64)i, d->domain_id, e, p, b, FLAG);
	return answer;
}
static int detach(struct kvm_hyp_iommu *i, struct kvm_hyp_iommu_domain *d, u32 e, u32 p)
{
	NOTE(15, (u64)i, d->domain_id, e, p);
	return answer;
}
static int map(struct kvm_hyp_iommu_domain *d, unsigned long iova, phys_addr_t pa, size_t size, size_t count, int prot,
		size_t *total)
{
	size_t bytes = size * count;

	NOTE(16, d->domain_id, iova, pa, size, count, prot);
	if (page_order && !ops->iommu_donate_pages(page_order - 1, 1))
		return -ENOMEM;
	*total = bytes < room ? bytes : room;
	return answer;
}
static size_t unmap(struct kvm_hyp_iommu_domain *d, unsigned long iova, size_t size, size_t count,
		struct iommu_iotlb_gather *g CACHE)
{
	NOTE(17, d->domain_id, iova, size, count, g->start, g->end);
#ifdef PKVM_EMU_IOMMU_INIT_ARG
	for (size_t i = 0; i < count; i++) {
		cache->paddr[cache->ptr] = room + i * size;
		cache->pgsize[cache->ptr++] = size;
	}
#endif
	g->start = iova;
	return size * count;
}
static phys_addr_t translate(struct kvm_hyp_iommu_domain *d, unsigned long iova)
{
	NOTE(18, d->domain_id, iova);
	return iova + 0x1000;
}
static void sync(struct kvm_hyp_iommu_domain *d, struct iommu_iotlb_gather *g) { NOTE(19, d->domain_id, g->start); }
static void idmap(struct kvm_hyp_iommu_domain *d, phys_addr_t s, phys_addr_t e, int p) { NOTE(20, (u64)d, s, e, p); }
#ifndef PKVM_EMU_IOMMU_INIT_ARG
static void complete(bool map) { NOTE(6, map); }
static int block(struct kvm_hyp_iommu *i, u32 e, bool to_guest) { NOTE(21, (u64)i, e, to_guest); return answer; }
static int token(pkvm_handle_t id, u64 *out) { NOTE(22, id); *out = 0x10000 + id; return answer; }
static int reset(void *cookie, bool to_guest) { NOTE(23, (u64)cookie, to_guest); return 0; }
#endif
static int suspend(struct kvm_hyp_iommu *i) { NOTE(7, (u64)i, i->power_is_off); return answer; }
static int resume(struct kvm_hyp_iommu *i) { NOTE(8, (u64)i, i->power_is_off); return answer; }
static bool dabt(pkvm_handler_regs_t *regs, u64 esr, u64 addr)
{
	if (addr >> 16 != 0x1800)
		return false;
	NOTE(9, addr, esr >> 26);
	((u64 *)regs)[0] = 0x77;
	return !answer;
}
#ifdef PKVM_EMU_IOMMU_INIT_ARG
static bool dabt_66(struct kvm_cpu_context *c, u64 esr, u64 addr) { return dabt((pkvm_handler_regs_t *)c, esr, addr); }
#endif
struct kvm_iommu_ops table = {
	.init = init, .get_iommu_by_id = by_id, .alloc_domain = alloc_domain, .free_domain = free_domain,
	.attach_dev = attach, .detach_dev = detach, .map_pages = map, .unmap_pages = unmap, .iova_to_phys = translate,
	.iotlb_sync = sync, .host_stage2_idmap = idmap, .suspend = suspend, .resume = resume,
#ifdef PKVM_EMU_IOMMU_INIT_ARG
	.dabt_handler = dabt_66,
#else
	.dabt_handler = dabt, .host_stage2_idmap_complete = complete, .dev_block_dma = block, .get_iommu_token_by_id = token,
#endif
};
#define DRIVER table
#define INSTANCE instance
#define SNAPSHOT ops->iommu_snapshot_host_stage2(0)
#define INIT_DEVICE ops->iommu_init_device(&instance)
static int init_scmi(u64 smc, u64 domain, u64 base, u64 size)
{
	instance.power_domain.type = KVM_POWER_DOMAIN_ARM_SCMI;
	instance.power_domain.arm_scmi.smc_id = smc;
	instance.power_domain.arm_scmi.domain_id = domain;
	instance.power_domain.arm_scmi.shmem_base = base;
	instance.power_domain.arm_scmi.shmem_size = size;
	return ops->iommu_init_device(&instance);
}
#define INIT_SCMI init_scmi(x[2], x[3], x[4], x[5])
#ifdef PKVM_EMU_IOMMU_INIT_ARG
#define REGISTER_RESET 0
#else
#define REGISTER_RESET ops->device_register_reset(x[2], (void *)x[3], reset)
#endif
#define DONATE_ARG , true
"""
    + _CONTROL
)

#: The EL1 half of a driver with domains: registers itself, and starts its EL2 half when the kernel says so.
DOMAINS_EL1 = """
#include <asm/kvm_host.h>
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
void __kvm_nvhe_hyp_call(pkvm_handler_regs_t *regs);
extern struct kvm_iommu_ops __kvm_nvhe_table;
static unsigned long token;
static int result;
module_param(result, int, 0644);
static int start(void)
{
	struct kvm_hyp_memcache mc = { 0 };
	struct kvm_iommu_ops *ops = (struct kvm_iommu_ops *)pkvm_el2_mod_va(&__kvm_nvhe_table, token);
	int ret = topup_hyp_memcache(&mc, 3, 0);

	if (ret || result)
		return ret ? ret : result;
#ifdef PKVM_EMU_IOMMU_INIT_ARG
	return kvm_iommu_init_hyp(ops, &mc, 0x1234);
#else
	return kvm_iommu_init_hyp(ops, &mc);
#endif
}
#ifdef PKVM_EMU_IOMMU_INIT_ARG
static pkvm_handle_t id(struct device *dev) { return 3; }
static struct kvm_iommu_driver driver = { .init_driver = start, .get_iommu_id = id };
#else
static pkvm_handle_t id(struct device_node *np) { return 3; }
static struct kvm_iommu_driver driver = { .init_driver = start, .get_iommu_id_by_of = id };
#endif
static int __init probe_init(void)
{
	int ret = pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token);

	if (!ret)
		ret = pkvm_register_el2_mod_call(__kvm_nvhe_hyp_call, token) < 0;
	return ret ? ret : kvm_iommu_register_driver(&driver);
}
module_init(probe_init);
"""


class Driver:
    """A booted system with one of these drivers loaded.

    Attributes:
        address: hyp VA of what the host names the driver by.
        instance: hyp VA of its IOMMU.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.hyp = system.hyp
        self._number = system.modules["probe"].hypercalls["hyp_call"]
        self.address, self._notes, self._answer, self._room, self.instance = self._control(0)

    def hypercall(self, name: str, *args: int) -> tuple[int, ...]:
        """A host hypercall by name: x0 to x3, x0 and x1 signed."""
        number = self.system.generation.hypercalls[name]
        answer = self.system.kernel.hvc(0xC600_0000 | number, *[a & _U64 for a in args])
        return (*[(word ^ 1 << 63) - (1 << 63) for word in answer[:2]], *answer[2:4])

    def errno(self, name: str, *args: int) -> int:
        """x1 of a hypercall that has to be answered."""
        answer = self.hypercall(name, *args)
        assert answer[0] == 0
        return answer[1]

    def notes(self) -> list[tuple[int, ...]]:
        """The calls since the last time, without trailing zeros."""
        words = [self._control(2, self._notes + 8 * at)[0] for at in range(self._control(1)[0])]
        calls = [tuple(words[at : at + 8]) for at in range(0, len(words), 8)]
        return [call[: max(index for index, word in enumerate(call) if word) + 1] for call in calls]

    def answers(self, errno: int) -> None:
        """Make functions that can fail return this."""
        self._control(3, self._answer, errno & _U64)

    def set_room(self, value: int) -> None:
        """How many bytes ``map_pages`` maps; 6.6: the first address that ``unmap_pages`` reports."""
        self._control(3, self._room, value)

    def load(self, va: int) -> int:
        """64 bits at EL2."""
        return self._control(2, va)[0]

    def snapshot(self) -> int:
        """The driver asks for the host's stage-2."""
        return self._control(4)[0]

    def init_device(self) -> int:
        """The driver registers the power domain of its IOMMU."""
        return self._control(5)[0]

    def on_reset(self, pa: int, cookie: int) -> int:
        """The module registers its reset handler for the device at ``pa``."""
        return self._control(20, pa, cookie)[0]

    def init_scmi(self, smc: int, domain: int, base: int, size: int = 4096) -> int:
        """The driver registers an SCMI power domain for its IOMMU; an errno as 32 bits."""
        return self._control(21, smc, domain, base, size)[0] & 0xFFFF_FFFF

    def donate(self, pa: int) -> None:
        """The module takes a page of the host."""
        assert self._control(6, pa >> 12)[0] == 0

    def give_back(self, pa: int) -> None:
        """The module gives it back."""
        assert self._control(7, pa >> 12)[0] == 0

    def page(self) -> int:
        """PA of a free page of the host."""
        pa = self.system.kernel.pages.alloc_pages(0, zero=True)
        assert pa is not None
        return pa

    def fill_pool(self) -> None:
        """Give the IOMMU pool a page."""
        assert self.errno("hyp_alloc_mgt_refill", 1, self.page(), 1) == 0

    def _control(self, *args: int) -> tuple[int, ...]:
        answer = self.system.kernel.hvc(0xC600_0000 | self._number, *args)
        assert answer[0] == 0
        return answer[1:6]
