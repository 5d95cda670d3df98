"""Ops of the hypervisor's heap (android15 and later). Source: arch/arm64/kvm/hyp/nvhe/alloc.c."""

from __future__ import annotations

from errno import EBUSY, ENOENT

from pkvm_emu.hyp.heap import HypHeap
from pkvm_emu.hyp.host_requests import DEST_HYP_ALLOC, TYPE_MEM, HostRequest, HostRequests
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U64, Ptr


@op("hyp_alloc")
def hyp_alloc(hyp: Hypervisor, size: U64) -> int:
    """VA of ``size`` zeroed bytes (rounded up to 8), or NULL; ``hyp_alloc_errno`` says why.

    -ENOMEM: the host has to top pages up (``hyp_alloc_missing_donations`` says how many); -EINVAL: more than the address
    space that is left; -E2BIG: more than all of it.
    """
    return hyp.part(HypHeap).alloc(size)


@op("hyp_alloc_errno")
def hyp_alloc_errno(hyp: Hypervisor) -> int:
    """Result of this CPU's last ``hyp_alloc``: 0 or a negative errno."""
    return hyp.part(HypHeap).errno.get(hyp.cpu.index, 0)


@op("hyp_free")
def hyp_free(hyp: Hypervisor, va: Ptr) -> None:
    """Free a block of ``hyp_alloc``; anything else is a hypervisor BUG, or a fault where nothing is mapped."""
    hyp.part(HypHeap).free(va)


@op("hyp_alloc_missing_donations")
def hyp_alloc_missing_donations(hyp: Hypervisor) -> int:
    """Pages that this CPU's last failed ``hyp_alloc`` lacked (u8); asking clears the count."""
    return hyp.part(HypHeap).take_missing()


@op("request_hyp_alloc")
def request_hyp_alloc(hyp: Hypervisor) -> int:
    """Leave a request for the missing pages, which the host gets with the result of its hypercall (android16, later releases).

    0; -ENOENT when nothing is missing; -EBUSY when a request waits already.
    """
    missing = hyp.part(HypHeap).take_missing()
    if not missing:
        return -ENOENT
    requests = hyp.part(HostRequests)
    if requests.pending(hyp.cpu.index) is not None:
        return -EBUSY
    requests.leave(hyp.cpu.index, HostRequest(TYPE_MEM, DEST_HYP_ALLOC, missing, 0))
    return 0
