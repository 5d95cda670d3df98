"""Hypercalls about guests. VMs are made by :meth:`pkvm_emu.hyp.vms.Vms.create`: ``init_vm`` takes a kernel's ``struct kvm``.

Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,pkvm}.c, device/device.c.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV

from pkvm_emu.hyp.device_assignment import DeviceAssignment
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.pgtable import PAGE_HYP_DEVICE, PROT_RWX
from pkvm_emu.hyp.refusals import Refusals
from pkvm_emu.hyp.registry import GuestCall, hypercall
from pkvm_emu.hyp.vms import Vms
from pkvm_emu.machine.calling import U8, U32, U64

PAGE_SHIFT = 12
_NO_VCPU = "no vCPU is loaded on this CPU"
_NOT_PROTECTED = "the loaded vCPU is not that of a protected VM"
_PROTECTED = "the VM is protected: its pages are its own"
_NO_DEVICE = "this is not the whole register range of an assignable device"
_TAKEN = "a VM has the device"


def _refuse(hyp: Hypervisor, errno: int, rule: str) -> int:
    return hyp.part(Refusals).refuse(-errno, rule)


@hypercall("vcpu_load")
def vcpu_load(hyp: Hypervisor, handle: U32, vcpu: U32, _hcr: U64) -> None:
    """Load a VM's only vCPU on this CPU; a handle or number that does not exist loads nothing."""
    vms = hyp.part(Vms)
    cpu = hyp.machine.current.index
    if handle in vms.table and not vcpu and cpu not in vms.loaded and not vms.table[handle].dying:
        vms.loaded[cpu] = handle


@hypercall("vcpu_put")
def vcpu_put(hyp: Hypervisor) -> None:
    """Put the loaded vCPU away."""
    hyp.part(Vms).loaded.pop(hyp.machine.current.index, None)


@hypercall("vcpu_run")
def vcpu_run(hyp: Hypervisor) -> int | GuestCall:
    """Run the loaded vCPU until the host is needed; x1 = the exit code (2: a trap), or -EINVAL without one."""
    return hyp.part(Vms).run()


@hypercall("host_donate_guest")
def host_donate_guest(hyp: Hypervisor, pfn: U64, gfn: U64, pages: U64) -> int:
    """Give pages to the protected VM that is loaded; x1 = errno."""
    machine = hyp.part(Vms).current
    if machine is None or not machine.protected:
        return _refuse(hyp, EINVAL, _NO_VCPU if machine is None else _NOT_PROTECTED)
    return hyp.ownership.host_donate_guest(machine, pfn, gfn, pages, origin="host")


@hypercall("host_share_guest")
def host_share_guest(hyp: Hypervisor, pfn: U64, gfn: U64, prot: U64, pages: U64) -> int:
    """Share pages with the VM that is loaded, which is not protected; x1 = errno."""
    machine = hyp.part(Vms).current
    if machine is None or machine.protected:
        return _refuse(hyp, EINVAL, _NO_VCPU if machine is None else _PROTECTED)
    return hyp.ownership.host_share_guest(machine, pfn, gfn, pages, prot, origin="host")


@hypercall("host_map_guest")
def host_map_guest(hyp: Hypervisor, pfn: U64, gfn: U64, pages: U64, prot: U64) -> int:
    """android14, android15: give pages to the loaded VM or share them with it, by what it is; x1 = errno.

    android14 takes one page and neither count nor protection.
    """
    machine = hyp.part(Vms).current
    if machine is None:
        return _refuse(hyp, EINVAL, _NO_VCPU)
    if hyp.part(Vms).rules.pages_per_call == 1:
        pages, prot = 1, PROT_RWX
    if machine.protected:
        return hyp.ownership.host_donate_guest(machine, pfn, gfn, pages, origin="host")
    return hyp.ownership.host_share_guest(machine, pfn, gfn, pages, prot, origin="host")


@hypercall("host_unshare_guest", "host_unmap_guest")
def host_unshare_guest(hyp: Hypervisor, handle: U32, gfn: U64, pages: U64) -> int:
    """Take shared pages back from a VM that is not protected; x1 = errno."""
    machine = hyp.part(Vms).table.get(handle)
    if machine is None or machine.protected:
        return _refuse(hyp, EINVAL, "no VM has this handle" if machine is None else _PROTECTED)
    return hyp.ownership.host_unshare_guest(machine, gfn, pages, origin="host")


@hypercall("start_teardown_vm")
def start_teardown_vm(hyp: Hypervisor, handle: U32) -> int:
    """The VM dies: its pages may be reclaimed; x1 = errno."""
    return hyp.part(Vms).start_teardown(handle)


@hypercall("reclaim_dying_guest_page")
def reclaim_dying_guest_page(hyp: Hypervisor, handle: U32, pfn: U64, gfn: U64, order: U8) -> int:
    """Take a page of a dying VM back; x1 = errno (-EINVAL: no such VM, or it does not die)."""
    machine = hyp.part(Vms).table.get(handle)
    if machine is None or not machine.dying:
        return _refuse(hyp, EINVAL, "no VM has this handle" if machine is None else "the VM is not being torn down")
    return hyp.ownership.reclaim_page(machine, pfn, gfn, order, origin="host")


@hypercall("finalize_teardown_vm", runs_guest=True)
def finalize_teardown_vm(hyp: Hypervisor, handle: U32) -> int:
    """The VM is gone; its devices are reset and return to the host; x1 = errno."""
    return hyp.part(Vms).finalise_teardown(handle)


def _whole_device(hyp: Hypervisor, pfn: int, pages: int) -> int | None:
    number = hyp.part(Devices).find(pfn << PAGE_SHIFT)
    if number is None or (pfn << PAGE_SHIFT, pages << PAGE_SHIFT) not in hyp.part(Devices).resources[number]:
        return None
    return number


@hypercall("host_donate_hyp_mmio")
def host_donate_hyp_mmio(hyp: Hypervisor, pfn: U64, pages: U64) -> int:
    """Take the registers of an assignable device from the host; x1 = errno (-ENODEV, -EBUSY: a VM has it)."""
    number = _whole_device(hyp, pfn, pages)
    if number is None:
        return _refuse(hyp, ENODEV, _NO_DEVICE)
    if number in hyp.part(Devices).owners or hyp.part(Devices).references.get(number):
        return _refuse(hyp, EBUSY, _TAKEN)
    return hyp.ownership.host_donate_hyp(pfn, pages, True, PAGE_HYP_DEVICE, origin="host")


@hypercall("host_reclaim_hyp_mmio")
def host_reclaim_hyp_mmio(hyp: Hypervisor, pfn: U64, pages: U64) -> int:
    """Give the registers of a device that no VM has back to the host; x1 = errno."""
    number = _whole_device(hyp, pfn, pages)
    if number is None:
        return _refuse(hyp, ENODEV, _NO_DEVICE)
    if number in hyp.part(Vms).devices:
        return _refuse(hyp, EBUSY, _TAKEN)
    return hyp.ownership.hyp_donate_host(pfn, pages, origin="host")


@hypercall("host_map_guest_mmio", runs_guest=True)
def host_map_guest_mmio(hyp: Hypervisor, pfn: U64, gfn: U64) -> int:
    """Map a page of device registers in the loaded VM; the first one resets the device's group and assigns it; x1 = errno."""
    machine = hyp.part(Vms).current
    if machine is None or not machine.protected:
        return _refuse(hyp, EINVAL, _NO_VCPU if machine is None else _NOT_PROTECTED)
    return DeviceAssignment(hyp).map_mmio(machine, pfn, gfn)
