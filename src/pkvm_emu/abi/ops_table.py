"""The rows behind abi/ops.py: every member of ``struct pkvm_module_ops`` with its offset in each layout.

One row an op: offsets in the android14 (5.15 and 6.1), android15 and android16 layouts, the C prototype, what it does.
``{regs}`` in a prototype stands for the handler argument of the generation. Offsets, prototypes and the later use of
reserve slots are those of arch/arm64/include/asm/kvm_pkvm_module.h of the branches; what the ops do is read from
arch/arm64/kvm/hyp/nvhe/{modules,mm,mem_protect,alloc,iommu/iommu}.c.
"""

from __future__ import annotations

from dataclasses import dataclass

LAYOUTS = ("a14", "a15", "a16")
"""Layout names: a14 serves android14-5.15 and android14-6.1."""


@dataclass(frozen=True, slots=True)
class OpRow:
    """One op over all layouts; an offset of None means that the layout has no such member."""

    name: str
    a14: int | None
    a15: int | None
    a16: int | None
    prototype: str
    semantics: str
    a14_prototype: str | None = None
    a15_prototype: str | None = None

    def offset(self, layout: str) -> int | None:
        """Byte offset in ``layout`` (one of :data:`LAYOUTS`)."""
        return {"a14": self.a14, "a15": self.a15, "a16": self.a16}[layout]

    def prototype_in(self, layout: str, regs: str) -> str:
        """The C prototype in ``layout``, handlers taking ``struct <regs> *``."""
        own = {"a14": self.a14_prototype, "a15": self.a15_prototype}.get(layout)
        return (own or self.prototype).replace("{regs}", regs)


@dataclass(frozen=True, slots=True)
class LtsRow:
    """An op that a later release of the branch put into a reserve slot."""

    layout: str
    offset: int
    name: str
    prototype: str
    semantics: str
    verified: bool = True


# fmt: off
PROT = "enum kvm_pgtable_prot prot"

ROWS: tuple[OpRow, ...] = (
    OpRow(
        "create_private_mapping", 0x000, 0x000, 0x000,
        f"int (phys_addr_t phys, size_t size, {PROT}, unsigned long *haddr)",
        "map physical memory at the next address of the private range; ownership is neither checked nor changed",
    ),
    OpRow(
        "alloc_module_va", 0x008, 0x008, 0x008, "void *(u64 nr_pages)",
        "reserve address space in the private range; non-NULL even when the reservation failed",
    ),
    OpRow(
        "map_module_page", 0x010, 0x010, 0x010, f"int (u64 pfn, void *va, {PROT}, bool is_protected)",
        "map a page at a reserved address, after donating it to the hypervisor unless is_protected",
    ),
    OpRow(
        "register_serial_driver", 0x018, 0x018, 0x018, "int (void (*putc)(char c))",
        "the character output behind putc, puts and putx64; one slot",
    ),
    OpRow("putc", None, 0x020, 0x020, "void (char c)", "one character to the serial driver; nothing without one"),
    OpRow("puts", 0x020, 0x028, 0x028, "void (const char *s)", "a string, then \\n\\r, to the serial driver"),
    OpRow("putx64", 0x028, 0x030, 0x030, "void (u64 num)", "0x and 16 hex digits, then \\n\\r, to the serial driver"),
    OpRow(
        "fixmap_map", 0x030, 0x038, 0x038, "void *(phys_addr_t phys)",
        "map one page read-write in this CPU's fixmap slot; does not nest",
    ),
    OpRow("fixmap_unmap", 0x038, 0x040, 0x040, "void (void)", "clear this CPU's fixmap slot"),
    OpRow(
        "fixblock_map", None, None, 0x048, "void *(phys_addr_t phys)",
        "map a 2 MiB block in the one global slot, which stays locked until unmapped",
    ),
    OpRow("fixblock_unmap", None, None, 0x050, "void (void)", "clear the block slot and unlock it"),
    OpRow(
        "linear_map_early", 0x040, 0x048, 0x058, f"void *(phys_addr_t phys, size_t size, {PROT})",
        "map page-aligned memory at its linear address; has to be undone before deprivilege",
    ),
    OpRow(
        "linear_unmap_early", 0x048, 0x050, 0x060, "void (void *addr, size_t size)", "undo linear_map_early",
    ),
    OpRow(
        "flush_dcache_to_poc", 0x050, 0x058, 0x068, "void (void *addr, size_t size)",
        "clean and invalidate the data cache to the point of coherency",
    ),
    OpRow(
        "update_hcr_el2", 0x058, 0x060, 0x070, "void (unsigned long set_mask, unsigned long clear_mask)",
        "change HCR_EL2 of this CPU, kept over suspend",
    ),
    OpRow(
        "update_hfgwtr_el2", 0x060, 0x068, 0x078, "void (unsigned long set_mask, unsigned long clear_mask)",
        "change HFGWTR_EL2 of this CPU, kept over suspend; undefined without FGT",
    ),
    OpRow(
        "register_host_perm_fault_handler", 0x068, 0x070, 0x080,
        "int (int (*cb)(struct {regs} *regs, u64 esr, u64 addr))",
        "be asked about permission faults of the host's stage-2",
    ),
    OpRow(
        "host_stage2_mod_prot", 0x070, 0x078, 0x088, f"int (u64 pfn, {PROT}, u64 nr_pages, bool update_iommu)",
        "restrict (or restore with RWX) what the host may do with pages",
        a14_prototype=f"int (u64 pfn, {PROT})",
    ),
    OpRow(
        "host_stage2_get_leaf", 0x078, 0x080, 0x090, "int (phys_addr_t phys, u64 *ptep, s8 *level)",
        "raw host stage-2 entry and its level",
        a14_prototype="int (phys_addr_t phys, u64 *ptep, u32 *level)",
        a15_prototype="int (phys_addr_t phys, u64 *ptep, u32 *level)",
    ),
    OpRow(
        "host_stage2_enable_lazy_pte", None, None, 0x098, "int (u64 pfn, u64 nr_pages)",
        "unmap pages from the host's stage-2 while it keeps them; faults map them again",
    ),
    OpRow(
        "host_stage2_disable_lazy_pte", None, None, 0x0A0, "int (u64 pfn, u64 nr_pages)",
        "end lazy mapping and map the pages back",
    ),
    OpRow(
        "register_host_smc_handler", 0x080, 0x088, 0x0A8, "int (bool (*cb)(struct {regs} *regs))",
        "be asked about SMCs of the host; true = consumed",
    ),
    OpRow(
        "register_guest_smc_handler", None, None, 0x0B0,
        "int (bool (*cb)(struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *res, u32 handle))",
        "be asked about SMCs of protected guests; true = res goes back",
    ),
    OpRow(
        "register_default_trap_handler", 0x088, 0x090, 0x0B8, "int (bool (*cb)(struct {regs} *regs))",
        "be asked about host traps that the hypervisor has no use for; false = panic",
    ),
    OpRow(
        "register_illegal_abt_notifier", 0x090, 0x098, 0x0C0, "int (void (*cb)(struct {regs} *regs))",
        "be told before an abort is injected into the host",
    ),
    OpRow(
        "register_psci_notifier", 0x098, 0x0A0, 0x0C8,
        "int (void (*cb)(enum pkvm_psci_notification notif, struct {regs} *regs))",
        "be told of CPU suspend, system suspend and CPU entry",
    ),
    OpRow(
        "register_hyp_panic_notifier", 0x0A0, 0x0A8, 0x0D0, "int (void (*cb)(struct {regs} *regs))",
        "be told of a hypervisor panic",
    ),
    OpRow(
        "register_unmask_serror", None, 0x0B0, 0x0D8, "int (bool (*unmask)(void), void (*mask)(void))",
        "unmask SError on entry from the host and mask it on exit",
    ),
    OpRow(
        "host_donate_hyp", 0x0A8, 0x0B8, 0x0E0, "int (u64 pfn, u64 nr_pages, bool accept_mmio)",
        "move pages from the host to the hypervisor",
        a14_prototype="int (u64 pfn, u64 nr_pages)",
    ),
    OpRow(
        "host_donate_hyp_prot", None, 0x0C0, 0x0E8, f"int (u64 pfn, u64 nr_pages, bool accept_mmio, {PROT})",
        "host_donate_hyp with a chosen hypervisor mapping; a restricted one can never be given back",
    ),
    OpRow(
        "host_donate_sglist_hyp", None, None, 0x0F0, "int (struct pkvm_sglist_page *sglist, size_t nr_pages)",
        "donate a list of pages and higher orders at once",
    ),
    OpRow(
        "hyp_donate_host", 0x0B0, 0x0C8, 0x0F8, "int (u64 pfn, u64 nr_pages)", "give pages back to the host",
    ),
    OpRow("host_share_hyp", 0x0B8, 0x0D0, 0x100, "int (u64 pfn)", "share one host page with the hypervisor"),
    OpRow("host_unshare_hyp", 0x0C0, 0x0D8, 0x108, "int (u64 pfn)", "end the sharing of one page"),
    OpRow(
        "pin_shared_mem", 0x0C8, 0x0E0, 0x110, "int (void *from, void *to)",
        "keep shared pages (hypervisor addresses) from being unshared",
    ),
    OpRow(
        "unpin_shared_mem", 0x0D0, 0x0E8, 0x118, "void (void *from, void *to)",
        "undo pin_shared_mem; fatal for pages that are not pinned",
    ),
    OpRow("memcpy", 0x0D8, 0x0F0, 0x120, "void *(void *to, const void *from, size_t count)", "copy memory"),
    OpRow("memset", 0x0E0, 0x0F8, 0x128, "void *(void *dst, int c, size_t count)", "fill memory"),
    OpRow("hyp_pa", 0x0E8, 0x100, 0x130, "phys_addr_t (void *x)", "physical of a linear hypervisor address, unchecked"),
    OpRow("hyp_va", 0x0F0, 0x108, 0x138, "void *(phys_addr_t phys)", "linear hypervisor address, unchecked"),
    OpRow(
        "kern_hyp_va", 0x0F8, 0x110, 0x140, "unsigned long (unsigned long x)",
        "hypervisor address of a kernel linear address",
    ),
    OpRow(
        "tracing_reserve_entry", None, 0x180, 0x148, "void *(unsigned long length)",
        "room for one trace event; NULL while tracing is off",
    ),
    OpRow("tracing_commit_entry", None, 0x188, 0x150, "void (void)", "publish the reserved event"),
    OpRow(
        "tracing_mod_hyp_printk", None, None, 0x158, "void (u8 fmt_id, u64 a, u64 b, u64 c, u64 d)",
        "trace a printk by format number",
    ),
    OpRow("hyp_alloc", None, 0x118, 0x160, "void *(size_t size)", "zeroed heap memory; NULL when the heap is short"),
    OpRow("hyp_alloc_errno", None, 0x120, 0x168, "int (void)", "why this CPU's last hyp_alloc failed"),
    OpRow("hyp_free", None, 0x128, 0x170, "void (void *addr)", "free heap memory"),
    OpRow(
        "hyp_alloc_missing_donations", None, 0x158, 0x178, "u8 (void)",
        "pages that the last failed hyp_alloc lacked; reading clears the count",
    ),
    OpRow(
        "iommu_donate_pages", None, 0x130, 0x180, "void *(u8 order, int flags)",
        "pages from the IOMMU pool; NULL leaves a request for the host",
        a15_prototype="void *(u8 order, bool request)",
    ),
    OpRow("iommu_reclaim_pages", None, 0x138, 0x188, "void (void *p, u8 order)", "pages back to the IOMMU pool"),
    OpRow("iommu_request", None, 0x140, None, "int (struct kvm_hyp_req *req)", "queue a request for the host"),
    OpRow(
        "iommu_init_device", None, 0x148, 0x190, "int (struct kvm_hyp_iommu *iommu)",
        "initialise lock and power domain of an IOMMU instance",
    ),
    OpRow("udelay", None, 0x150, 0x198, "void (unsigned long usecs)", "busy-wait on the virtual counter"),
    OpRow(
        "iommu_iotlb_gather_add_page", None, 0x170, 0x1A0,
        "void (struct kvm_hyp_iommu_domain *domain, struct iommu_iotlb_gather *gather, unsigned long iova,"
        " size_t size)",
        "collect an invalidation, flushing first what does not fit",
    ),
    OpRow(
        "pkvm_unuse_dma", None, None, 0x1A8, "int (phys_addr_t phys_addr, size_t size)",
        "drop the DMA references of a range; fatal for a page without one",
    ),
    OpRow(
        "list_add_valid_or_report", None, 0x160, 0x1B0,
        "bool (struct list_head *new, struct list_head *prev, struct list_head *next)",
        "slow path of a hardened list insertion; must preserve x9 to x15",
    ),
    OpRow(
        "list_del_entry_valid_or_report", None, 0x168, 0x1B8, "bool (struct list_head *entry)",
        "slow path of a hardened list removal; must preserve x9 to x15",
    ),
    OpRow(
        "register_hyp_event_ids", None, 0x178, None, "int (unsigned long start, unsigned long end)",
        "announce the module's trace event ids",
    ),
    OpRow(
        "iommu_snapshot_host_stage2", None, 0x1A0, 0x1C0, "int (struct kvm_hyp_iommu_domain *domain)",
        "replay the host's stage-2 into the driver's identity map",
    ),
    OpRow(
        "iommu_donate_pages_atomic", None, 0x190, 0x1C8, "void *(u8 order)", "pages from the atomic IOMMU pool",
    ),
    OpRow(
        "iommu_reclaim_pages_atomic", None, 0x198, 0x1D0, "void (void *p, u8 order)",
        "pages back to the atomic IOMMU pool",
    ),
    OpRow("hyp_smp_processor_id", None, 0x1A8, 0x1D8, "int (void)", "number of this CPU"),
    OpRow(
        "device_register_reset", None, None, 0x1E0,
        "int (u64 phys, void *cookie, int (*cb)(void *cookie, bool host_to_guest))",
        "be asked to reset an assignable device",
    ),
)

LTS_ROWS: tuple[LtsRow, ...] = (
    LtsRow(
        "a14", 256, "host_stage2_mod_prot_range", f"int (u64 pfn, {PROT}, u64 nr_pages)",
        "host_stage2_mod_prot over a range",
    ),
    LtsRow(
        "a15", 432, "iommu_flush_unmap_cache", "void (struct kvm_iommu_paddr_cache *cache)",
        "drop the collected addresses of an unmap",
    ),
    LtsRow(
        "a15", 440, "host_stage2_enable_lazy_pte", "int (u64 addr, u64 nr_pages)",
        "unmap pages from the host's stage-2 while it keeps them",
    ),
    LtsRow("a15", 448, "host_stage2_disable_lazy_pte", "int (u64 addr, u64 nr_pages)", "end lazy mapping"),
    LtsRow(
        "a15", 456, "register_guest_smc_handler",
        "int (bool (*cb)(struct arm_smccc_1_2_regs *regs, struct arm_smccc_res *res, u32 handle), u32 handle)",
        "be asked about SMCs of one protected guest",
    ),
    LtsRow(
        "a15", 464, "guest_stage2_pa", "int (u32 handle, u64 ipa, phys_addr_t *phys)",
        "physical address behind a guest page",
    ),
    LtsRow(
        "a16", 488, "register_guest_trng_ops", "int (const struct pkvm_module_trng_ops *ops)",
        "serve random numbers to guests; one slot",
    ),
    LtsRow(
        "a16", 496, "map_module_pages", f"int (u64 pfn, void *va, u64 nr_pages, {PROT}, bool is_protected)",
        "map_module_page over a range", verified=False,
    ),
    LtsRow(
        "a16", 504, "unmap_module_pages", "void (u64 pfn, void *va, u64 nr_pages)",
        "undo map_module_pages", verified=False,
    ),
    LtsRow("a16", 512, "request_hyp_alloc", "int (void)", "ask the host for the missing heap pages", verified=False),
)
# fmt: on
