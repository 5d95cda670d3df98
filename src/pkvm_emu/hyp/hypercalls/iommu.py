"""Hypercalls of the IOMMU core: initialising the driver, its power domains, assignable devices.

Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,iommu/iommu,power/hvc,device/device}.c.
"""

from __future__ import annotations

from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.hyp.registry import hypercall
from pkvm_emu.machine.calling import U64, Bool, Ptr

_IS_OFF = 56


@hypercall("iommu_init", runs_guest=True)
def iommu_init(hyp: Hypervisor, ops: Ptr, head: U64, pages: U64, argument: U64) -> int:
    """Initialise the IOMMU driver whose ``struct kvm_iommu_ops`` is at the hyp VA ``ops``.

    The list of pages (head, number of blocks) fills the atomic pool. x1 = 0, -ENODEV where a mandatory function is missing,
    or what the driver's ``init`` returns (android15 passes it ``argument``).
    """
    return hyp.part(Iommu).init(ops, HostMemcache(hyp.machine.ram, head, pages), argument)


@hypercall("host_hvc_pd", runs_guest=True)
def host_hvc_pd(hyp: Hypervisor, device_id: U64, on: Bool) -> int:
    """Power the IOMMU of a power domain on or off: its driver's ``resume`` or ``suspend`` runs; x1 = 0, -E2BIG or -ENOENT."""
    core = hyp.part(Iommu)
    iommu, error = core.power(device_id, on)
    if error:
        return error
    function = "resume" if on else "suspend"
    if not on:
        hyp.write(iommu + _IS_OFF, b"\1")
    result = core.driver.call(function, iommu) & 0xFFFF_FFFF if core.driver.function(function) else 0
    if not result:
        hyp.write(iommu + _IS_OFF, b"\0" if on else b"\1")
    return 0


@hypercall("devices_init")
def devices_init(hyp: Hypervisor) -> int:
    """Take over the table of assignable devices, which this board's device tree leaves empty; x1 = 0."""
    return 0
