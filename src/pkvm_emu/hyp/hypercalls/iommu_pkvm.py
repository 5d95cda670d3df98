"""Hypercalls of android14's IOMMU core. Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,iommu}.c of android14-5.15 and -6.1."""

from __future__ import annotations

from pkvm_emu.hyp import layout
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.iommu_pkvm import PkvmIommus
from pkvm_emu.hyp.registry import hypercall
from pkvm_emu.machine.calling import S32, U8, U64, Ptr


@hypercall("iommu_driver_init", runs_guest=True)
def iommu_driver_init(hyp: Hypervisor, driver: Ptr, data: Ptr, size: U64) -> int:
    """Initialise a driver: hyp VA of its ``struct pkvm_iommu_driver``, kernel VA and bytes of data shared with EL2; x1 = errno."""
    return hyp.part(PkvmIommus).init_driver(driver, layout.kern_hyp_va(data), size)


@hypercall("iommu_register", runs_guest=True)
def iommu_register(
    hyp: Hypervisor, device: U64, driver: Ptr, pa: U64, size: U64, parent: U64, flags: U8, memory: Ptr
) -> int:
    """Register a device; ``memory`` is the kernel VA of a page for EL2, or 0. x1 = errno; -ENOMEM asks for that page."""
    page = layout.kern_hyp_va(memory) if memory else 0
    return hyp.part(PkvmIommus).register(device, driver, pa, size, parent, flags, page)


@hypercall("iommu_pm_notify", runs_guest=True)
def iommu_pm_notify(hyp: Hypervisor, device: U64, event: S32) -> int:
    """A device is suspended (0) or resumed (1); x1 = errno."""
    return hyp.part(PkvmIommus).pm_notify(device, event)


@hypercall("iommu_finalize")
def iommu_finalize(hyp: Hypervisor, error: S32) -> int:
    """No driver and no device comes any more; x1 = 0 or -EPERM."""
    return hyp.part(PkvmIommus).finalise(error)
