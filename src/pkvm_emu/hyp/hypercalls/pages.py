"""Hypercalls about pages that the host itself makes: sharing with the hypervisor, private mappings.

Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,mem_protect,mm}.c.
"""

from __future__ import annotations

from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.ops.memory import map_private
from pkvm_emu.hyp.registry import hypercall
from pkvm_emu.machine.calling import U64


@hypercall("host_share_hyp")
def host_share(hyp: Hypervisor, pfn: U64) -> int:
    """Share page ``pfn`` with the hypervisor; x1 = errno."""
    return hyp.ownership.host_share_hyp(pfn, origin="host")


@hypercall("host_unshare_hyp")
def host_unshare(hyp: Hypervisor, pfn: U64) -> int:
    """End the sharing of page ``pfn``; x1 = errno."""
    return hyp.ownership.host_unshare_hyp(pfn, origin="host")


@hypercall("create_private_mapping")
def host_create_private_mapping(hyp: Hypervisor, phys: U64, size: U64, prot: U64) -> int:
    """Map physical memory in the private range; x1 = the hyp VA or a negative errno."""
    error, va = map_private(hyp, phys, size, prot)
    return error or va
