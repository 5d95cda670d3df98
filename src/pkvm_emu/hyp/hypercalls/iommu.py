"""Hypercalls of the IOMMU core (android15 and later): the driver, power domains, domains; assignable devices.

Those that take memory of the host answer with a request in x2 and x3 where some is missing
(:class:`~pkvm_emu.hyp.host_requests.HostRequest`). Source:
arch/arm64/kvm/hyp/nvhe/{hyp-main,iommu/iommu,power/hvc,device/device}.c.
"""

from __future__ import annotations

from pkvm_emu.hyp import layout
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.host_requests import HostRequests
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_domains import IommuDomains
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.hyp.pviommu import PvIommus, Route
from pkvm_emu.hyp.registry import WithStatus, hypercall
from pkvm_emu.machine.calling import S32, U32, U64, Bool, Ptr


def _with_request(hyp: Hypervisor, result: int) -> tuple[int, int, int]:
    return (result, *hyp.part(HostRequests).take(hyp.cpu.index))


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
    return hyp.part(Iommu).power(device_id, on)


@hypercall("pviommu_attach")
def pviommu_attach(hyp: Hypervisor, kvm: Ptr, number: U32) -> int:
    """Give a VM that is not made yet (kernel VA of its ``struct kvm``) an IOMMU with this id; x1 = 0, -EINVAL or -EBUSY."""
    return hyp.part(PvIommus).attach(kvm, number)


@hypercall("pviommu_add_vsid")
def pviommu_add_vsid(hyp: Hypervisor, kvm: Ptr, number: U32, iommu: U32, sid: U32, vsid: U32) -> int:
    """Put endpoint ``sid`` of a physical IOMMU behind it, as ``vsid``; x1 = 0, -ENOENT, -EBUSY or -EEXIST."""
    return hyp.part(PvIommus).add_route(kvm, number, Route(vsid, iommu, sid))


@hypercall("devices_init")
def devices_init(hyp: Hypervisor) -> int:
    """Take over the host's table of assignable devices; x1 = errno of the donation."""
    return hyp.part(Devices).init()


@hypercall("host_iommu_alloc_domain", runs_guest=True)
def alloc_domain(hyp: Hypervisor, domain: U32, kind: U32) -> tuple[int, int, int]:
    """Make a domain; x1 = errno, x2 and x3 a request where memory is missing."""
    return _with_request(hyp, IommuDomains(hyp).alloc(domain, kind))


@hypercall("host_iommu_free_domain", runs_guest=True)
def free_domain(hyp: Hypervisor, domain: U32) -> tuple[int, int, int]:
    """Free a domain; x1 = errno. A domain that is attached or not allocated is a hypervisor panic."""
    return _with_request(hyp, IommuDomains(hyp).free(domain))


@hypercall("host_iommu_attach_dev", runs_guest=True)
def attach_dev(
    hyp: Hypervisor, iommu: U32, domain: U32, endpoint: U32, pasid: U32, pasid_bits: U32, flags: U64
) -> tuple[int, int, int]:
    """Attach a device of an IOMMU to a domain; x1 = errno, x2 and x3 a request."""
    return _with_request(hyp, IommuDomains(hyp).attach(iommu, domain, endpoint, pasid, pasid_bits, flags))


@hypercall("host_iommu_detach_dev", runs_guest=True)
def detach_dev(hyp: Hypervisor, iommu: U32, domain: U32, endpoint: U32, pasid: U32) -> tuple[int, int, int]:
    """Detach a device; x1 = errno."""
    return _with_request(hyp, IommuDomains(hyp).detach(iommu, domain, endpoint, pasid))


@hypercall("host_iommu_map_pages", runs_guest=True)
def map_pages(hyp: Hypervisor, domain: U32, iova: U64, paddr: U64, pgsize: U64, pgcount: U64, prot: S32) -> WithStatus:
    """Map ``pgcount`` pages of ``pgsize`` bytes; x0 = errno, x1 = bytes mapped, x2 and x3 a request where the driver
    lacked memory.
    """
    error, mapped = IommuDomains(hyp).map_pages(domain, iova, paddr, pgsize, pgcount, prot)
    return WithStatus(error, _with_request(hyp, mapped))


@hypercall("host_iommu_unmap_pages", runs_guest=True)
def unmap_pages(hyp: Hypervisor, domain: U32, iova: U64, pgsize: U64, pgcount: U64) -> tuple[int, int, int]:
    """Unmap pages; x1 = bytes unmapped, x2 and x3 a request."""
    return _with_request(hyp, IommuDomains(hyp).unmap_pages(domain, iova, pgsize, pgcount))


@hypercall("host_iommu_map_sg", runs_guest=True)
def map_sg(hyp: Hypervisor, domain: U32, iova: U64, entries: Ptr, count: U32, prot: U32) -> tuple[int, int, int]:
    """Map a list of ``struct kvm_iommu_sg`` at a kernel address that is shared with EL2; x1 = bytes mapped, x2 and x3 a request."""
    result = IommuDomains(hyp).map_sg(domain, iova, layout.kern_hyp_va(entries), count, prot)
    return _with_request(hyp, result)


@hypercall("host_iommu_iova_to_phys", runs_guest=True)
def iova_to_phys(hyp: Hypervisor, domain: U32, iova: U64) -> int:
    """x1 = PA behind an address of a domain, or 0."""
    return IommuDomains(hyp).iova_to_phys(domain, iova)


@hypercall("host_iommu_iotlb_sync_map", runs_guest=True)
def iotlb_sync_map(hyp: Hypervisor, domain: U32, iova: U64, size: U64) -> int:
    """Make new mappings visible to the IOMMU; x1 = errno (android15, later releases)."""
    return IommuDomains(hyp).sync_map(domain, iova, size)
