"""Host hypercall numbers: what EL1 adds to 0xC6000000.

>>> table = hypercall_table("a16")
>>> table["register_hcall"], table["__pkvm_register_hcall"], table.name(18)
(18, 18, 'register_hcall')

The kernel's function names are the data; lookups take them with or without ``__`` and ``pkvm_``/``kvm_``.
Source: enum __kvm_host_smccc_func in arch/arm64/include/asm/kvm_asm.h (android15, android16 6.12.23). The android14
numbers follow from the order of the handler table in hyp/nvhe/hyp-main.c and were not read as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

DYNAMIC_BASE = 128
DYNAMIC_MAX = 128

_BOOT = (
    "__kvm_hyp_init __kvm_get_mdcr_el2 __pkvm_init __pkvm_create_private_mapping __pkvm_cpu_set_vector "
    "__kvm_enable_ssbs __vgic_v3_init_lrs __vgic_v3_get_gic_config __kvm_flush_vm_context __kvm_tlb_flush_vmid_ipa "
)
_TLB = "__kvm_tlb_flush_vmid_ipa_nsh __kvm_tlb_flush_vmid __kvm_tlb_flush_vmid_range __kvm_flush_cpu_context "
_MODULE = (
    "__pkvm_alloc_module_va __pkvm_map_module_page __pkvm_unmap_module_page __pkvm_init_module __pkvm_register_hcall "
)
_SHARE = "__pkvm_prot_finalize __pkvm_host_share_hyp __pkvm_host_unshare_hyp "
_RUN = (
    "__kvm_adjust_pc __kvm_vcpu_run __kvm_timer_set_cntvoff __vgic_v3_save_vmcr_aprs __vgic_v3_restore_vmcr_aprs "
    "__pkvm_init_vm __pkvm_init_vcpu __pkvm_start_teardown_vm __pkvm_finalize_teardown_vm "
    "__pkvm_reclaim_dying_guest_page "
)
_VCPU = "__pkvm_vcpu_load __pkvm_vcpu_put __pkvm_vcpu_sync_state "
_ALLOC = "__pkvm_hyp_alloc_mgt_refill __pkvm_hyp_alloc_mgt_reclaimable __pkvm_hyp_alloc_mgt_reclaim "
_IOMMU = (
    "__pkvm_host_iommu_alloc_domain __pkvm_host_iommu_free_domain __pkvm_host_iommu_attach_dev "
    "__pkvm_host_iommu_detach_dev __pkvm_host_iommu_map_pages __pkvm_host_iommu_unmap_pages "
    "__pkvm_host_iommu_iova_to_phys __pkvm_host_hvc_pd "
)
_ORDER = {
    "a14": _BOOT
    + "__kvm_tlb_flush_vmid __kvm_flush_cpu_context "
    + _MODULE
    + _SHARE
    + "__pkvm_host_map_guest "
    + _RUN
    + _VCPU
    + "__pkvm_iommu_driver_init __pkvm_iommu_register __pkvm_iommu_pm_notify __pkvm_iommu_finalize "
    "__pkvm_load_tracing __pkvm_teardown_tracing __pkvm_enable_tracing __pkvm_rb_swap_reader_page "
    "__pkvm_rb_update_footers __pkvm_enable_event __pkvm_set_stage2_memattr",
    "a15": _BOOT
    + _TLB
    + _MODULE
    + "__pkvm_iommu_init "
    + _SHARE
    + "__pkvm_host_map_guest __pkvm_host_unmap_guest __pkvm_relax_perms __pkvm_wrprotect __pkvm_dirty_log "
    "__pkvm_host_split_guest __pkvm_tlb_flush_vmid "
    + _RUN
    + _VCPU
    + "__pkvm_load_tracing __pkvm_teardown_tracing __pkvm_enable_tracing __pkvm_swap_reader_tracing "
    "__pkvm_enable_event "
    + _ALLOC
    + _IOMMU
    + "__pkvm_stage2_snapshot __pkvm_host_iommu_iotlb_sync_map __pkvm_hyp_pool_report_free_pages "
    "__pkvm_hyp_pool_report_min_free_pages",
    "a16": _BOOT
    + _TLB
    + _MODULE
    + "__pkvm_iommu_init __pkvm_devices_init "
    + _SHARE
    + "__pkvm_host_donate_guest __pkvm_host_donate_guest_sglist __pkvm_host_share_guest __pkvm_host_unshare_guest "
    "__pkvm_host_relax_perms_guest __pkvm_host_wrprotect_guest __pkvm_host_test_clear_young_guest "
    "__pkvm_host_mkyoung_guest "
    + _RUN
    + "__pkvm_reclaim_dying_guest_ffa_resources "
    + _VCPU
    + "__pkvm_update_clock_tracing __pkvm_load_tracing __pkvm_teardown_tracing __pkvm_enable_tracing "
    "__pkvm_reset_tracing __pkvm_swap_reader_tracing __pkvm_enable_event __pkvm_selftest_event __pkvm_sync_ftrace "
    "__pkvm_disable_ftrace __pkvm_tlb_flush_vmid "
    + _ALLOC
    + _IOMMU
    + "__pkvm_ptdump __pkvm_host_iommu_map_sg __pkvm_host_donate_hyp_mmio __pkvm_host_reclaim_hyp_mmio "
    "__pkvm_host_map_guest_mmio __pkvm_pviommu_attach __pkvm_pviommu_add_vsid __pkvm_host_get_ffa_version",
}
# "init" alone would say nothing; the kernel's own tag stays.
_KEEP_TAG = frozenset({"__kvm_hyp_init", "__pkvm_init"})


def short_name(function: str) -> str:
    """``__pkvm_alloc_module_va`` → ``alloc_module_va``; ``kvm_hyp_init`` and ``pkvm_init`` keep their tag."""
    bare = function.lstrip("_")
    if f"__{bare}" in _KEEP_TAG:
        return bare
    return bare.removeprefix("pkvm_").removeprefix("kvm_")


class HypercallTable(Mapping[str, int]):
    """Hypercall numbers of a generation; iteration is by number and gives short names.

    Two functions whose short names coincide (``__kvm_tlb_flush_vmid``, ``__pkvm_tlb_flush_vmid``): the lower number
    has the short name, the other one keeps its tag.

    Attributes:
        functions: the kernel's function names; the index is the number.
        verified: False where the numbers were inferred.
    """

    __slots__ = ("_numbers", "_shorts", "functions", "verified")

    def __init__(self, functions: tuple[str, ...], *, verified: bool) -> None:
        self.functions = functions
        self.verified = verified
        self._shorts: list[str] = []
        self._numbers: dict[str, int] = {}
        for number, function in enumerate(functions):
            short = short_name(function)
            if short in self._numbers:
                short = function.lstrip("_")
            self._shorts.append(short)
            self._numbers[short] = number
        for number, function in enumerate(functions):
            self._numbers[function] = self._numbers[function.lstrip("_")] = number

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shorts)

    def __len__(self) -> int:
        return len(self._shorts)

    def name(self, number: int) -> str | None:
        """Short name of a number; None beyond the table (dynamic ids have no names here)."""
        return self._shorts[number] if 0 <= number < len(self._shorts) else None


@cache
def hypercall_table(layout: str) -> HypercallTable:
    """The table of the ops layout ``a14``, ``a15`` or ``a16``."""
    return HypercallTable(tuple(_ORDER[layout].split()), verified=layout != "a14")
