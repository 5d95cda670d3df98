"""Ops for IOMMU drivers (android15 and later). Source: arch/arm64/kvm/hyp/nvhe/iommu/iommu.c."""

from __future__ import annotations

from errno import EBUSY, EOPNOTSUPP

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.external_pool import ExternalPool
from pkvm_emu.hyp.host_requests import REQUEST_SIZE, HostRequest, HostRequests
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_blocks import BlockPools
from pkvm_emu.hyp.iommu_domains import flush_unmap_cache, init_gather
from pkvm_emu.hyp.iommu_scmi import ScmiPower
from pkvm_emu.hyp.pgtable import PAGE_HYP, PROT_NORMAL_NC
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U8, U64, Ptr
from pkvm_emu.machine.pagetable import PAGE_SIZE

_NO_CACHE = 1
_U64 = (1 << 64) - 1
_POWER_NONE, _POWER_HVC, _POWER_SCMI = 0, 1, 2
#: struct kvm_power_domain: a u32 type; the number of an HVC domain.
_POWER_TYPE, _POWER_DEVICE = 0, 8
_GATHER_START, _GATHER_END, _GATHER_PGSIZE = 0, 8, 16


def _remap(hyp: Hypervisor, va: int, order: int, extra: int) -> int:
    """Map a block of a pool again with another cacheability."""
    size = PAGE_SIZE << order
    if hyp.stage1.unmap(va, size) != size:
        raise HypBug(f"the IOMMU core cannot map the {size:#x} bytes at {va:#x} anew: they are not all mapped")
    return hyp.stage1.map_linear(hyp.stage1.pa_of(va), size, PAGE_HYP | extra)


def _donate(hyp: Hypervisor, pool: ExternalPool, order: int, no_cache: bool, request: bool) -> int:
    pa = hyp.part(Iommu).donate(pool, order, request)
    if not pa:
        return 0
    va = hyp.stage1.va_of(pa)
    if no_cache and _remap(hyp, va, order, PROT_NORMAL_NC):
        pool.put(pa)
        return 0
    return va


def _check_order(hyp: Hypervisor, pool: ExternalPool | BlockPools, va: int, order: int) -> None:
    if order > pool.order_of(hyp.stage1.pa_of(va)):
        raise HypBug(f"an IOMMU page at {va:#x} is given back with order {order}, it was taken with a smaller one")


@op("iommu_donate_pages")
def iommu_donate_pages(hyp: Hypervisor, order: U8, flags: U64) -> int:
    """Linear VA of ``2**order`` zeroed pages of the pool, or NULL.

    Flag bit 0 asks for a non-cacheable mapping (android16); with NULL a request for the host is left. On android15 the second
    argument is a bool and says whether to leave one. The block may be larger than asked for. Before an IOMMU driver has
    been initialised there is no pool: a hypervisor panic.
    """
    pool = hyp.part(Iommu).pool
    if hyp.part(Iommu).rules.donation_asks_for_request:
        return _donate(hyp, pool, order, False, bool(flags & 1))
    return _donate(hyp, pool, order, bool(flags & _NO_CACHE), True)


@op("iommu_reclaim_pages")
def iommu_reclaim_pages(hyp: Hypervisor, va: Ptr, order: U8) -> None:
    """Give pages of ``iommu_donate_pages`` back, cacheable again.

    A page that is not from the pool is a hypervisor BUG; so is an ``order`` larger than the block's on android15.
    """
    pool = hyp.part(Iommu).pool_of(hyp.stage1.pa_of(va))
    if hyp.part(Iommu).rules.reclaim_checks_order:
        _check_order(hyp, pool, va, order)
    else:
        _remap(hyp, va, order, 0)
    pool.put(hyp.stage1.pa_of(va))


@op("iommu_donate_pages_atomic")
def iommu_donate_pages_atomic(hyp: Hypervisor, order: U8) -> int:
    """As ``iommu_donate_pages`` from the pool that the driver brought for its identity map."""
    iommu = hyp.part(Iommu)
    return _donate(hyp, iommu.atomic_pool, order, False, not iommu.rules.donation_asks_for_request)


@op("iommu_reclaim_pages_atomic")
def iommu_reclaim_pages_atomic(hyp: Hypervisor, va: Ptr, order: U8) -> None:
    """Give pages of ``iommu_donate_pages_atomic`` back."""
    pool = hyp.part(Iommu).atomic_pool
    if hyp.part(Iommu).rules.reclaim_checks_order:
        _check_order(hyp, pool, va, order)
    pool.put(hyp.stage1.pa_of(va))


@op("iommu_request")
def iommu_request(hyp: Hypervisor, request: Ptr) -> int:
    """Leave a ``struct kvm_hyp_req`` (24 bytes) for the host with the result of its hypercall; 0 or -EBUSY (android15)."""
    requests = hyp.part(HostRequests)
    if requests.pending(hyp.cpu.index) is not None:
        return -EBUSY
    requests.leave(hyp.cpu.index, HostRequest.parse(hyp.load(request, REQUEST_SIZE, "iommu_request")))
    return 0


@op("iommu_init_device")
def iommu_init_device(hyp: Hypervisor, iommu: Ptr) -> int:
    """Initialise lock and power domain of a ``struct kvm_hyp_iommu``.

    0; -E2BIG: HVC power domain number 32 or more; -EINVAL, -ENXIO, -ENOSPC: an SCMI channel or domain that cannot be
    (:meth:`~pkvm_emu.hyp.iommu_scmi.ScmiPower.register`); -EOPNOTSUPP: no such kind of power domain.
    """
    core = hyp.part(Iommu)
    domain = iommu + core.rules.power_domain
    hyp.write(iommu + core.rules.lock, bytes(4), "iommu_init_device initialises the lock")
    kind = int.from_bytes(hyp.load(domain + _POWER_TYPE, 4, "iommu_init_device"), "little")
    if kind == _POWER_NONE:
        return 0
    if kind == _POWER_HVC:
        device = hyp.load_u64(domain + _POWER_DEVICE, "iommu_init_device")
        return core.init_power_domain(iommu, kind, device)
    if kind == _POWER_SCMI:
        return hyp.part(ScmiPower).register(iommu)
    return -EOPNOTSUPP


@op("iommu_iotlb_gather_add_page", runs_guest=True)
def iommu_iotlb_gather_add_page(hyp: Hypervisor, domain: Ptr, gather: Ptr, iova: U64, size: U64) -> None:
    """Add ``[iova, iova + size)`` to a ``struct iommu_iotlb_gather``.

    The driver's ``iotlb_sync`` runs first when the page size differs from what was gathered, or the range does not touch it.
    """
    what = "iommu_iotlb_gather_add_page"
    start, end, pgsize = (hyp.load_u64(gather + at, what) for at in (_GATHER_START, _GATHER_END, _GATHER_PGSIZE))
    last = iova + size - 1 & _U64
    disjoint = end and (last + 1 < start or iova > end + 1)
    if (pgsize and pgsize != size) or disjoint:
        hyp.part(Iommu).sync_iotlb(domain, gather)
        init_gather(hyp, gather, what)
        start, end = _U64, 0
    hyp.write_u64(gather + _GATHER_PGSIZE, size, what)
    hyp.write_u64(gather + _GATHER_START, min(start, iova), what)
    hyp.write_u64(gather + _GATHER_END, max(end, last), what)


@op("iommu_snapshot_host_stage2", runs_guest=True)
def iommu_snapshot_host_stage2(hyp: Hypervisor, domain: Ptr) -> int:
    """Call the driver's ``host_stage2_idmap`` for every range that the host can reach, and for each change from now on; 0."""
    return hyp.part(Iommu).snapshot(domain)


@op("iommu_flush_unmap_cache")
def iommu_flush_unmap_cache(hyp: Hypervisor, cache: Ptr) -> None:
    """Drop the DMA references of all addresses in a ``struct kvm_iommu_paddr_cache`` and empty it (android15, later releases)."""
    flush_unmap_cache(hyp, cache, hyp.caller())
