"""Ops about assignable devices. Source: arch/arm64/kvm/hyp/nvhe/device/device.c."""

from __future__ import annotations

from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U64, Ptr


@op("device_register_reset")
def device_register_reset(hyp: Hypervisor, phys: U64, cookie: Ptr, callback: Ptr) -> int:
    """Be asked to reset the assignable device whose MMIO holds ``phys``: ``callback(cookie, host_to_guest)`` (android16).

    0; -ENODEV: no assignable device is there; -EBUSY: it has a handler.
    """
    return hyp.part(Devices).register_reset(phys, cookie, callback)
