"""Hypercalls by which the host gives the hypervisor's allocators pages and takes them back.

Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,alloc_mgt}.c.
"""

from __future__ import annotations

from errno import EINVAL

from pkvm_emu.hyp.heap import HypHeap
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.hyp.registry import hypercall
from pkvm_emu.machine.calling import S32, U64

HEAP, IOMMU = 0, 1


@hypercall("hyp_alloc_mgt_refill")
def alloc_mgt_refill(hyp: Hypervisor, allocator: U64, head: U64, pages: U64) -> int:
    """Give a list of pages (head of a ``kvm_hyp_memcache``, number of blocks) to the heap (0) or the IOMMU pool (1); x1 = errno."""
    cache = HostMemcache(hyp.machine.ram, head, pages)
    if allocator == HEAP:
        return hyp.part(HypHeap).refill(cache)
    return hyp.part(Iommu).refill(cache) if allocator == IOMMU else -EINVAL


@hypercall("hyp_alloc_mgt_reclaimable")
def alloc_mgt_reclaimable(hyp: Hypervisor) -> int:
    """x1 = pages that the allocators could give back."""
    iommu = hyp.part(Iommu)
    return hyp.part(HypHeap).reclaimable() + iommu.reclaimable


@hypercall("hyp_alloc_mgt_reclaim")
def alloc_mgt_reclaim(hyp: Hypervisor, target: S32) -> tuple[int, int]:
    """Give up to ``target`` pages back; x1 = head of the list, x2 = number of blocks."""
    cache = HostMemcache(hyp.machine.ram)
    hyp.part(HypHeap).reclaim(cache, target)
    iommu = hyp.part(Iommu)
    if cache.count < target and iommu.ops:
        iommu.reclaim(cache, target)
    return cache.head, cache.count
