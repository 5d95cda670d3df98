"""The memory region that the host keeps for the tables of IOMMU drivers at EL2: ``pkvm,cma`` (android15, later releases).

Source: arch/arm64/kvm/iommu.c of android15-6.6.
"""

from __future__ import annotations

from pkvm_emu.hyp.iommu_blocks import BLOCK_SIZE
from pkvm_emu.kernel.iommu import IommuDrivers
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.calling import Ptr


@kernel_symbol("kvm_iommu_cma_alloc")
def kvm_iommu_cma_alloc(kernel: Kernel) -> int:
    """``struct page`` of 2 MiB of the region; NULL where there is none, or none is left."""
    drivers = kernel.part(IommuDrivers)
    base, size = drivers.region
    for pa in range(-(-base // BLOCK_SIZE) * BLOCK_SIZE, base + size - BLOCK_SIZE + 1, BLOCK_SIZE):
        if pa not in drivers.taken:
            drivers.taken[pa] = True
            return kernel.part(Vmemmap).page(pa)
    return 0


@kernel_symbol("kvm_iommu_cma_release")
def kvm_iommu_cma_release(kernel: Kernel, page: Ptr) -> int:
    """Give them back; false where they are not of the region."""
    pa = kernel.part(Vmemmap).physical(page) if page else None
    return int(pa is not None and kernel.part(IommuDrivers).taken.pop(pa, False))
