"""Ops that map physical memory for a moment. Source: arch/arm64/kvm/hyp/nvhe/mm.c."""

from __future__ import annotations

from pkvm_emu.hyp.fixmap import Fixmap
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U64


@op("fixmap_map")
def fixmap_map(hyp: Hypervisor, phys: U64) -> int:
    """Map the page of ``phys`` read-write in this CPU's slot; its VA, with the offset in the page.

    Nothing is checked: memory of the host, of nobody or of a device can be mapped. The slot does not nest.
    """
    return hyp.part(Fixmap).map(phys)


@op("fixmap_unmap")
def fixmap_unmap(hyp: Hypervisor) -> None:
    """Clear this CPU's slot."""
    hyp.part(Fixmap).unmap()


@op("fixblock_map")
def fixblock_map(hyp: Hypervisor, phys: U64) -> int | None:
    """Map the 2 MiB block at ``phys`` in the one slot of all CPUs, which stays locked until ``fixblock_unmap`` (android16).

    A ``phys`` that is not 2 MiB aligned is a hypervisor BUG; a second call by the same CPU before the
    unmap waits for ever.
    """
    return hyp.part(Fixmap).map_block(phys)


@op("fixblock_unmap")
def fixblock_unmap(hyp: Hypervisor) -> None:
    """Clear the block slot and release it."""
    hyp.part(Fixmap).unmap_block()
