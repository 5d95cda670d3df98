"""Managed resources: what ``devm_*`` functions hand out goes away with the device, last one first (``drivers/base/devres.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.devicetree.devices import Device, Devices, Managed
from pkvm_emu.kernel.devicetree.irq import Interrupts
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vmalloc import Vmalloc

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_PAGE_MASK = -4096


def add(device: Device, kind: str, value: int, extra: int = 0) -> None:
    """Tie something to a device.

    Kinds: ``memory`` (kmalloc address), ``mapping`` (ioremap address), ``irq`` (number, cookie), ``action`` (function, data),
    ``region`` (physical start), ``resource`` (data, release function: ``devres_add``), ``runtime-pm`` (enabled by devm).
    """
    device.managed.append(Managed(kind, value, extra))


def remove(device: Device, kind: str, value: int, extra: int | None = None) -> Managed | None:
    """Take the youngest of a kind back without releasing it; None where there is none."""
    for index in range(len(device.managed) - 1, -1, -1):
        one: Managed = device.managed[index]
        if one.kind == kind and one.value == value and (extra is None or one.extra == extra):
            del device.managed[index]
            return one
    return None


def release(kernel: Kernel, device: Device, one: Managed) -> None:
    """Undo one of them; actions and release functions run in the guest."""
    if one.kind == "memory":
        kernel.part(Slab).kfree(one.value, "devm_kfree")
    elif one.kind == "mapping":
        kernel.part(Vmalloc).release(one.value & _PAGE_MASK)
    elif one.kind == "irq":
        kernel.part(Interrupts).free(one.value, one.extra)
    elif one.kind == "action":
        kernel.call(one.value, one.extra)
    elif one.kind == "region":
        kernel.part(Devices).regions.pop(one.value, None)
    elif one.kind == "runtime-pm":
        device.disable_depth += 1
    else:
        if one.extra:
            kernel.call(one.extra, device.address, one.value)
        kernel.part(Slab).kfree(one.value, "devres_release")


def release_all(kernel: Kernel, device: Device) -> None:
    """Release everything of a device."""
    while device.managed:
        one = device.managed[-1]
        del device.managed[-1]
        release(kernel, device, one)
