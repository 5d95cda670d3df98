"""Who has which page, for all of memory at once: stretches of pages that are alike.

The answer comes from the tables themselves (the host's stage-2, the vmemmap, EL2's linear map), not from the log of transitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.hyp.page_state import (
    MMIO_DMA,
    MODULE_OWNED,
    NOPAGE,
    RESTRICTED_PROT,
    SHARED_BORROWED,
    SHARED_OWNED,
    Component,
)
from pkvm_emu.hyp.pgtable import OWNER_MASK, OWNER_SHIFT, visit_leaves
from pkvm_emu.machine.pagetable import DESC_VALID, LEVEL_SIZE, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from pkvm_emu.hyp.ownership_state import OwnershipState


class PageKind(Enum):
    """What a page is: a capital letter for maps in text, and words."""

    HOST = ".", "the host's"
    HYP = "H", "the hypervisor's"
    SHARED = "S", "the host's, shared with the hypervisor"
    MODULE = "M", "the host's, its permission set by a module"
    RESTRICTED = "R", "the host's, with fewer permissions"
    DMA = "D", "in use for DMA"
    GUEST = "G", "a protected guest's"
    GUEST_SHARED = "B", "a guest's, shared with the host"
    HOST_GUEST = "L", "the host's, shared with a guest"
    SECURE = "F", "the secure world's (FF-A)"
    SECURE_SHARED = "E", "the host's, shared with the secure world (FF-A)"
    PROTECTED = "P", "nobody's: taken from the host"

    def __init__(self, letter: str, text: str) -> None:
        self.letter = letter
        self.text = text


#: What the log of transitions says that pages became, by how it begins; the rest leaves them as they are.
_AFTER = (
    ("OWNED by HOST, used for DMA", PageKind.DMA),
    ("OWNED by HOST", PageKind.HOST),
    ("mapped for HOST", PageKind.HOST),
    ("OWNED by HYP", PageKind.HYP),
    ("SHARED with HYP", PageKind.SHARED),
    ("OWNED by GUEST", PageKind.GUEST),
    ("MMIO of GUEST", PageKind.GUEST),
    ("SHARED with GUEST", PageKind.HOST_GUEST),
    ("SHARED by GUEST", PageKind.GUEST_SHARED),
    ("SHARED_OWNED (FF-A)", PageKind.SECURE_SHARED),
    ("OWNED (FF-A)", PageKind.HOST),
    ("PROTECTED", PageKind.PROTECTED),
    ("host permission", PageKind.MODULE),
)


def kind_from_words(after: str) -> PageKind | None:
    """The kind of pages that a transition of the past left, by its words; None where it changed no owner."""
    return next((kind for words, kind in _AFTER if after.startswith(words)), None)


class Stretch(NamedTuple):
    """``size`` bytes of pages from physical address ``start`` that are of one kind."""

    start: int
    size: int
    kind: PageKind

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.size

    @property
    def pages(self) -> int:
        """How many pages."""
        return self.size >> PAGE_SHIFT


_OF_OWNER = {
    Component.HYP: PageKind.HYP,
    Component.FFA: PageKind.SECURE,
    Component.GUEST: PageKind.GUEST,
    Component.PROTECTED: PageKind.PROTECTED,
}


def kind_of(ownership: OwnershipState, pa: int) -> PageKind:
    """The kind of one page of RAM or MMIO."""
    return _kind(ownership, pa, ownership.owner_of(pa), ownership.host_state(pa))


def _kind(ownership: OwnershipState, pa: int, owner: Component, state: int) -> PageKind:
    if state & MODULE_OWNED:
        return PageKind.MODULE
    # The host can reach what a guest shares, so there is no annotation that names the owner.
    if state & 3 == SHARED_BORROWED and not state & NOPAGE:
        return PageKind.GUEST_SHARED
    if owner is not Component.HOST:
        return _OF_OWNER.get(owner, PageKind.PROTECTED)
    if state & NOPAGE:
        return PageKind.HOST
    if state & 3 == MMIO_DMA:
        return PageKind.DMA
    if state & 3 == SHARED_OWNED:
        if ownership.memory.is_memory(pa) and ownership.vmemmap.share_count(pa):
            return PageKind.HOST_GUEST
        is_mapped = ownership.hyp.leaf(ownership.hyp.va_of(pa)) is not None
        return PageKind.SHARED if is_mapped and not ownership.hyp_state(pa) & NOPAGE else PageKind.SECURE_SHARED
    return PageKind.RESTRICTED if state & RESTRICTED_PROT else PageKind.HOST


def stretches(ownership: OwnershipState, start: int, end: int) -> list[Stretch]:
    """The kinds of all pages of ``[start, end)``, ascending; outside RAM only what is not the host's."""
    found: list[Stretch] = []
    for stretch in _pieces(ownership, start, end):
        last = found[-1] if found else None
        if last is not None and last.kind is stretch.kind and last.end == stretch.start:
            found[-1] = Stretch(last.start, last.size + stretch.size, last.kind)
        else:
            found.append(stretch)
    return found


def _pieces(ownership: OwnershipState, start: int, end: int) -> Iterator[Stretch]:
    table = ownership.host.table
    for address, level, descriptor, _ in visit_leaves(table, start, min(end, 1 << table.va_bits)):
        first, last = max(address, start), min(address + LEVEL_SIZE[level], end)
        valid = bool(descriptor & DESC_VALID)
        owner = Component.HOST if valid else Component((descriptor & OWNER_MASK) >> OWNER_SHIFT)
        where = ownership.memory.find(first)
        if where.region is None:
            if owner is not Component.HOST:
                yield Stretch(first, last - first, _kind(ownership, first, owner, ownership.host_state(first)))
            continue
        if ownership.rules.state_in_pte:
            yield Stretch(first, last - first, _kind(ownership, first, owner, ownership.host_state(first)))
            continue
        last = min(last, where.end)
        states = ownership.vmemmap.states(first, last - first >> PAGE_SHIFT)
        page = first
        for state, same in groupby(states):
            size = sum(1 for _ in same) << PAGE_SHIFT
            if state & 3 == SHARED_OWNED and not state & (NOPAGE | MODULE_OWNED):
                for one in range(page, page + size, PAGE_SIZE):
                    yield Stretch(one, PAGE_SIZE, _kind(ownership, one, owner, state))
            else:
                yield Stretch(page, size, _kind(ownership, page, owner, state))
            page += size
