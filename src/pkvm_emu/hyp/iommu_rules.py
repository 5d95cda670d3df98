"""How the IOMMU core of android15 and android16 differs: layouts, prototypes and rules as data.

Sources: arch/arm64/kvm/hyp/nvhe/iommu/iommu.c, arch/arm64/kvm/hyp/include/nvhe/iommu.h, include/kvm/{iommu,power_domain}.h of
both branches. The android15 prototypes also agree with the kCFI words of a shipped driver. android14 has another core:
:mod:`pkvm_emu.hyp.iommu_pkvm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_DOMAIN, _IOMMU = "struct kvm_hyp_iommu_domain *domain", "struct kvm_hyp_iommu *iommu"
_GATHER = "struct iommu_iotlb_gather *gather"
_DEVICE = f"{_IOMMU}, {_DOMAIN}, u32 endpoint_id, u32 pasid"
_UNMAP = f"{_DOMAIN}, unsigned long iova, size_t pgsize, size_t pgcount, {_GATHER}"
_COMMON = {
    "free_domain": f"void ({_DOMAIN})",
    "get_iommu_by_id": "struct kvm_hyp_iommu *(pkvm_handle_t id)",
    "detach_dev": f"int ({_DEVICE})",
    "map_pages": f"int ({_DOMAIN}, unsigned long iova, phys_addr_t paddr, size_t pgsize, size_t pgcount, int prot,"
    " size_t *total_mapped)",
    "iova_to_phys": f"phys_addr_t ({_DOMAIN}, unsigned long iova)",
    "iotlb_sync": f"void ({_DOMAIN}, {_GATHER})",
    "host_stage2_idmap": f"void ({_DOMAIN}, phys_addr_t start, phys_addr_t end, int prot)",
    "suspend": f"int ({_IOMMU})",
    "resume": f"int ({_IOMMU})",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IommuRules:
    """The core of one generation.

    Attributes:
        members: members of ``struct kvm_iommu_ops`` in order.
        prototypes: those that the hypervisor calls.
        mandatory: members without which a driver is refused.
        missing_is_fatal: such a driver is a WARN at EL2, so a panic; else -ENODEV.
        init_optional: ``init`` may be NULL; its only argument comes with the hypercall.
        failed_init_returns_root: the root table of domains goes back to the host when ``init`` fails.
        domain_size: bytes of ``struct kvm_hyp_iommu_domain``.
        domain_vm: offset of the guest that a domain belongs to; None: guests have no domains.
        lock, power_domain, power_is_off: offsets in ``struct kvm_hyp_iommu``.
        host_domains: how many domain ids the host may allocate.
        identity_is_permanent: domain 0 cannot be freed.
        null_core_is_checked: attach and detach without a driver are -ENODEV; else the hypervisor follows a NULL pointer.
        attach_has_flags: ``attach_dev`` takes flags.
        alignment_checked: map (-EINVAL) and unmap (0) want addresses aligned to the page size.
        unmap_fills_cache: ``unmap_pages`` gets a ``struct kvm_iommu_paddr_cache`` and is called for 511 pages at most.
        unmap_without_driver: what unmapping and translating return then.
        donation_asks_for_request: the second argument of ``iommu_donate_pages`` says whether to leave a request for the host;
            else it is flags, and a request is always left.
        reclaim_checks_order: giving back more than the block is a BUG; else the pages become cacheable again.
        has_block_pools: 2 MiB pieces of the host's ``pkvm,cma`` region have pools of their own, which are asked first.
        null_is_refused: a NULL driver or NULL ops given to EL1 is -EINVAL; else a BUG of the kernel.
        memcache_has_mapping: ``struct kvm_hyp_memcache`` points at data that only EL1 uses.
        iommu_id_by_node: a driver's ``get_iommu_id`` takes the device-tree node; else the device.
        power_flag_follows_failure: ``power_is_off`` is set before ``resume`` and ``suspend``, and goes back when they fail.
    """

    members: tuple[str, ...]
    prototypes: Mapping[str, str]
    mandatory: tuple[str, ...]
    missing_is_fatal: bool
    init_optional: bool
    failed_init_returns_root: bool
    domain_size: int
    domain_vm: int | None
    lock: int
    power_domain: int
    power_is_off: int
    host_domains: int
    identity_is_permanent: bool
    null_core_is_checked: bool
    attach_has_flags: bool
    alignment_checked: bool
    unmap_fills_cache: bool
    unmap_without_driver: int
    donation_asks_for_request: bool
    reclaim_checks_order: bool
    has_block_pools: bool
    null_is_refused: bool
    memcache_has_mapping: bool
    iommu_id_by_node: bool
    power_flag_follows_failure: bool

    @property
    def domains_per_page(self) -> int:
        """Domains in one page of the second level."""
        return 4096 // self.domain_size

    @property
    def root_pages(self) -> int:
        """Pages of the root table: a pointer for each page of domains, rounded up to a power of two."""
        pages = -(-(MAX_DOMAINS // self.domains_per_page * 8) // 4096)
        return 1 << (pages - 1).bit_length()


MAX_DOMAINS = 1 << 16
IDENTITY = 0
#: Where EL1 stores ``kvm_hyp_iommu_domains``, from the start of the hypervisor's part of the kernel image. EL2 reads it once,
#: when the driver is initialised, which is before the host is deprivileged.
DOMAINS_ROOT_OFFSET = 0x20_0000

RULES: Mapping[str, IommuRules] = {
    "a15": IommuRules(
        members=(
            *("init", "get_iommu_by_id", "alloc_domain", "free_domain", "attach_dev", "detach_dev", "dabt_handler"),
            *("suspend", "resume", "iotlb_sync", "host_stage2_idmap", "map_pages", "unmap_pages", "iova_to_phys"),
            "iotlb_sync_map",
        ),
        prototypes={
            **_COMMON,
            "init": "int (unsigned long arg)",
            "alloc_domain": f"int ({_DOMAIN}, u32 type)",
            "attach_dev": f"int ({_DEVICE}, u32 pasid_bits)",
            "dabt_handler": "bool (struct kvm_cpu_context *host_ctxt, u64 esr, u64 addr)",
            "unmap_pages": f"size_t ({_UNMAP}, struct kvm_iommu_paddr_cache *cache)",
            "iotlb_sync_map": f"int ({_DOMAIN}, unsigned long iova, size_t size)",
        },
        mandatory=("get_iommu_by_id", "alloc_domain", "free_domain", "attach_dev", "detach_dev"),
        missing_is_fatal=True,
        init_optional=True,
        failed_init_returns_root=False,
        domain_size=32,
        domain_vm=None,
        lock=48,
        power_domain=0,
        power_is_off=52,
        host_domains=MAX_DOMAINS,
        identity_is_permanent=True,
        null_core_is_checked=False,
        attach_has_flags=False,
        alignment_checked=True,
        unmap_fills_cache=True,
        unmap_without_driver=0,
        donation_asks_for_request=True,
        reclaim_checks_order=True,
        has_block_pools=True,
        null_is_refused=False,
        memcache_has_mapping=False,
        iommu_id_by_node=False,
        power_flag_follows_failure=True,
    ),
    "a16": IommuRules(
        members=(
            *("init", "alloc_domain", "free_domain", "get_iommu_by_id", "attach_dev", "detach_dev", "map_pages"),
            *("unmap_pages", "iova_to_phys", "iotlb_sync", "dabt_handler", "host_stage2_idmap"),
            *("host_stage2_idmap_complete", "suspend", "resume", "dev_block_dma", "get_iommu_token_by_id"),
        ),
        prototypes={
            **_COMMON,
            "init": "int (void)",
            "alloc_domain": f"int ({_DOMAIN}, int type)",
            "attach_dev": f"int ({_DEVICE}, u32 pasid_bits, unsigned long flags)",
            "dabt_handler": "bool (struct user_pt_regs *regs, u64 esr, u64 addr)",
            "unmap_pages": f"size_t ({_UNMAP})",
            "host_stage2_idmap_complete": "void (bool map)",
            "dev_block_dma": f"int ({_IOMMU}, u32 endpoint_id, bool is_host_to_guest)",
            "get_iommu_token_by_id": "int (pkvm_handle_t smmu_id, u64 *out_token)",
        },
        mandatory=("init", "alloc_domain", "free_domain", "get_iommu_by_id"),
        missing_is_fatal=False,
        init_optional=False,
        failed_init_returns_root=True,
        domain_size=40,
        domain_vm=16,
        lock=0,
        power_domain=8,
        power_is_off=56,
        host_domains=MAX_DOMAINS // 2,
        identity_is_permanent=False,
        null_core_is_checked=True,
        attach_has_flags=True,
        alignment_checked=False,
        unmap_fills_cache=False,
        unmap_without_driver=-19,
        donation_asks_for_request=False,
        reclaim_checks_order=False,
        has_block_pools=False,
        null_is_refused=True,
        memcache_has_mapping=True,
        iommu_id_by_node=True,
        power_flag_follows_failure=False,
    ),
}
