"""IOMMU drivers at EL2: the exports of android14 (``pkvm_iommu_*``), and power of an IOMMU in all generations.

Source: arch/arm64/kvm/iommu.c of android14-5.15, android14-6.1, android15-6.6 and android16-6.12.
"""

from __future__ import annotations

from errno import ENOMEM

from pkvm_emu.hyp.iommu_rules import RULES
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.iommu import GET_ID, call_hyp, driver_function, s32
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, U8, U64, Ptr

_SUSPEND, _RESUME = 0, 1
_FIRST_TRY = 0


@kernel_symbol("pkvm_iommu_driver_init", runs_guest=True)
def pkvm_iommu_driver_init(kernel: Kernel, driver: Ptr, data: Ptr, size: U64) -> int:
    """Initialise the driver whose ``struct pkvm_iommu_driver`` is at a hyp VA; ``data`` is shared with EL2. 0 or -errno."""
    return s32(call_hyp(kernel, "iommu_driver_init", driver, data, size)[1])


@kernel_symbol("pkvm_iommu_register", runs_guest=True)
def pkvm_iommu_register(kernel: Kernel, device: Ptr, driver: Ptr, pa: U64, size: U64, parent: Ptr, flags: U8) -> int:
    """Register a device with a driver; a page is given to EL2 where it asks for one by -ENOMEM. 0 or -errno."""
    arguments = (device, driver, pa, size, parent, flags)
    result = s32(call_hyp(kernel, "iommu_register", *arguments, _FIRST_TRY)[1])
    if result != -ENOMEM:
        return result
    page = kernel.pages.alloc_pages(0)
    if page is None:
        return -ENOMEM
    return s32(call_hyp(kernel, "iommu_register", *arguments, kernel.memory.linear_va(page))[1])


@kernel_symbol("pkvm_iommu_finalize", runs_guest=True)
def pkvm_iommu_finalize(kernel: Kernel, error: S32) -> int:
    """Close the registration of drivers and devices; ``error``: what went wrong in the caller. 0, or -EPERM the second time."""
    return s32(call_hyp(kernel, "iommu_finalize", error)[1])


def _power(kernel: Kernel, device: int, event: int) -> int:
    if "iommu_pm_notify" in kernel.generation.hypercalls:
        return s32(call_hyp(kernel, "iommu_pm_notify", device, event)[1])
    argument = device
    rules = RULES.get(kernel.generation.layout)
    if rules is not None and rules.iommu_id_by_node:
        node = kernel.part(Devices).at(device).node
        argument = node.address if node is not None else 0
    function = driver_function(kernel, GET_ID)
    number = kernel.call_s32(function, argument) if function else 0
    return s32(call_hyp(kernel, "host_hvc_pd", number & (1 << 64) - 1, event)[1])


@kernel_symbol("pkvm_iommu_suspend", runs_guest=True)
def pkvm_iommu_suspend(kernel: Kernel, device: Ptr) -> int:
    """An IOMMU is about to lose power: its driver's EL2 ``suspend`` runs. 0 or -errno."""
    return _power(kernel, device, _SUSPEND)


@kernel_symbol("pkvm_iommu_resume", runs_guest=True)
def pkvm_iommu_resume(kernel: Kernel, device: Ptr) -> int:
    """An IOMMU has power again: its driver's EL2 ``resume`` runs. 0 or -errno."""
    return _power(kernel, device, _RESUME)
