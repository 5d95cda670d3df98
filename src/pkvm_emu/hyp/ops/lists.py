"""Slow paths of hardened linked lists (android15 and later).

Compiled modules come here when the quick check of an insertion or removal fails. Source: arch/arm64/kvm/hyp/nvhe/list_debug.c.
"""

from __future__ import annotations

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import Ptr

_PREVIOUS = 8
#: What ``list_del`` leaves in the pointers of an entry.
LIST_POISON1, LIST_POISON2 = 0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122


def _next(hyp: Hypervisor, node: int) -> int:
    return hyp.load_u64(node, f"list check of {node:#x}")


def _previous(hyp: Hypervisor, node: int) -> int:
    return hyp.load_u64(node + _PREVIOUS, f"list check of {node:#x}")


def _corrupt(what: str) -> HypBug:
    return HypBug(f"list corruption: {what}")


@op("list_add_valid_or_report")
def list_add_valid_or_report(hyp: Hypervisor, new: Ptr, previous: Ptr, following: Ptr) -> int:
    """1 (true) where ``new`` may be linked between two neighbours (hyp VAs of ``struct list_head``); else a hypervisor BUG."""
    back = _previous(hyp, following)
    if back != previous:
        raise _corrupt(f"adding {new:#x}: next {following:#x} has prev {back:#x}, not {previous:#x}")
    forward = _next(hyp, previous)
    if forward != following:
        raise _corrupt(f"adding {new:#x}: prev {previous:#x} has next {forward:#x}, not {following:#x}")
    if new in (previous, following):
        raise _corrupt(f"adding {new:#x} twice: it is its own neighbour")
    return 1


@op("list_del_entry_valid_or_report")
def list_del_entry_valid_or_report(hyp: Hypervisor, entry: Ptr) -> int:
    """1 (true) where an entry may be taken out; an entry that was deleted before, or wrong neighbours: a hypervisor BUG."""
    previous, following = _previous(hyp, entry), _next(hyp, entry)
    if following == LIST_POISON1 or previous == LIST_POISON2:
        raise _corrupt(f"removing {entry:#x}, which was removed before (its pointers are poison)")
    forward = _next(hyp, previous)
    if forward != entry:
        raise _corrupt(f"removing {entry:#x}: prev {previous:#x} has next {forward:#x}")
    back = _previous(hyp, following)
    if back != entry:
        raise _corrupt(f"removing {entry:#x}: next {following:#x} has prev {back:#x}")
    return 1
