"""What the host does when a call of a guest lacked something: memory for EL2, or for the guest itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import EmulatorError
from pkvm_emu.hyp.host_requests import DEST_HYP_ALLOC, DEST_HYP_IOMMU, HostRequest, MapRequest

if TYPE_CHECKING:
    from pkvm_emu.system import System
    from pkvm_emu.vm import VirtualMachine

_PAGE_SIZE, _PAGE_SHIFT = 4096, 12


def serve(system: System, machine: VirtualMachine) -> None:
    """Serve the requests that a VM's last call left (``handle_hyp_req`` in arch/arm64/kvm/{arm,mmu,pkvm}.c)."""
    requests = machine.requests
    for request in requests:
        if isinstance(request, MapRequest):
            _map(system, machine, request)
        elif request.dest == DEST_HYP_IOMMU:
            _fill_iommu_cache(system, machine, request)
        elif request.dest == DEST_HYP_ALLOC:
            from pkvm_emu.kernel.exports.pkvm_memory import pkvm_topup_hyp_alloc

            if error := pkvm_topup_hyp_alloc(system.kernel, request.pieces):
                raise EmulatorError(f"the host has no memory for the hypervisor's heap: {error}")
        else:
            raise EmulatorError(f"a guest's call asks the host for memory of kind {request.dest}")
    machine.forget_requests()


def _block(system: System, size: int) -> tuple[int, int]:
    order = (max(size, _PAGE_SIZE) - 1 >> _PAGE_SHIFT).bit_length()
    pa = system.kernel.pages.alloc_pages(order, zero=True)
    if pa is None:
        raise EmulatorError(f"the host has no {size:#x} bytes for a VM")
    return pa, order


def _fill_iommu_cache(system: System, machine: VirtualMachine, request: HostRequest) -> None:
    for _ in range(request.pieces):
        machine.add_iommu_pages(*_block(system, request.size))


def _map(system: System, machine: VirtualMachine, request: MapRequest) -> None:
    for ipa in range(request.ipa & -_PAGE_SIZE, request.ipa + request.size, _PAGE_SIZE):
        if machine.pa_of(ipa) is None:
            pa, _ = _block(system, _PAGE_SIZE)
            if error := machine.donate(pa, ipa):
                raise EmulatorError(f"the host cannot give the guest a page at {ipa:#x}: {error}")
