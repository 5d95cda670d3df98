"""``struct kvm_iommu_ops``: the functions of an IOMMU driver, which is a module, and how they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.kcfi import kcfi_type_id
from pkvm_emu.hyp.errors import HypFault

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_DOMAIN, _IOMMU = "struct kvm_hyp_iommu_domain *domain", "struct kvm_hyp_iommu *iommu"
_GATHER = "struct iommu_iotlb_gather *gather"
_COMMON = {
    "free_domain": f"void ({_DOMAIN})",
    "get_iommu_by_id": "struct kvm_hyp_iommu *(pkvm_handle_t id)",
    "iotlb_sync": f"void ({_DOMAIN}, {_GATHER})",
    "host_stage2_idmap": f"void ({_DOMAIN}, phys_addr_t start, phys_addr_t end, int prot)",
    "suspend": f"int ({_IOMMU})",
    "resume": f"int ({_IOMMU})",
}
#: Members in order, and the prototypes that the hypervisor calls here, by ops layout.
_MEMBERS = {
    "a15": "init get_iommu_by_id alloc_domain free_domain attach_dev detach_dev dabt_handler suspend resume iotlb_sync "
    "host_stage2_idmap map_pages unmap_pages iova_to_phys",
    "a16": "init alloc_domain free_domain get_iommu_by_id attach_dev detach_dev map_pages unmap_pages iova_to_phys "
    "iotlb_sync dabt_handler host_stage2_idmap host_stage2_idmap_complete suspend resume dev_block_dma "
    "get_iommu_token_by_id",
}
_PROTOTYPES = {
    "a15": {**_COMMON, "init": "int (unsigned long arg)"},
    "a16": {**_COMMON, "init": "int (void)", "host_stage2_idmap_complete": "void (bool map)"},
}
#: Without these the driver is refused (-ENODEV).
MANDATORY = ("init", "alloc_domain", "free_domain", "get_iommu_by_id")


class IommuDriver:
    """The driver's table at one hyp VA.

    Args:
        hyp: the hypervisor.
        address: hyp VA of ``struct kvm_iommu_ops``; 0 where no driver is there.
    """

    def __init__(self, hyp: Hypervisor, address: int) -> None:
        self._hyp = hyp
        self.address = address
        layout = hyp.generation.layout
        self._offsets = {name: 8 * index for index, name in enumerate(_MEMBERS.get(layout, "").split())}
        self._prototypes = _PROTOTYPES.get(layout, {})

    def function(self, name: str) -> int:
        """Hyp VA of a member; 0 where the driver (or the generation) has none.

        Raises:
            HypFault: there is no driver: the hypervisor follows a NULL pointer.
        """
        offset = self._offsets.get(name)
        if offset is None:
            return 0
        if not self.address:
            raise HypFault(f"kvm_iommu_ops->{name}: no IOMMU driver was initialised", offset, is_write=False)
        return self._hyp.load_u64(self.address + offset, f"kvm_iommu_ops->{name}")

    def call(self, name: str, *args: int) -> int:
        """Call a member at EL2; x0. The caller has made sure that the driver has it."""
        flavour = self._hyp.kcfi_flavour
        kcfi = 0
        if flavour != "none":
            kcfi = kcfi_type_id(self._prototypes[name], normalised=flavour == "normalised")
        return self._hyp.call_module(self.function(name), kcfi, *args)
