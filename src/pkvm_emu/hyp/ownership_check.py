"""Does the model agree with the tables that the CPU walks? For tests, and for a machine that suspects itself.

A module can write the hypervisor's tables and its vmemmap, since EL2 code can write everything EL2 maps. Whoever
wonders whether that happened compares here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.hyp.page_state import (
    MODULE_OWNED,
    NOPAGE,
    OWNED,
    SHARED_BORROWED,
    SHARED_OWNED,
    Component,
    Region,
    state_name,
)
from pkvm_emu.hyp.pgtable import OWNER_MASK, OWNER_SHIFT, owner_annotation, state_of
from pkvm_emu.machine.pagetable import ADDR_MASK, DESC_VALID, LAST_LEVEL, PAGE_SIZE, is_table

if TYPE_CHECKING:
    from pkvm_emu.hyp.ownership_state import OwnershipState

_NOT_OWNED = re.compile(rb"[^\0]")


def check_consistency(model: OwnershipState) -> list[str]:
    """Compare page states with a walk of the host stage-2 and of the EL2 linear map.

    Returns:
        One line for each disagreement, in address order; an empty list when there is none.
    """
    problems: list[str] = []
    for region in model.memory.regions:
        for page in sorted(_suspects(model, region)):
            problems += _check_page(model, page)
    problems += _check_refcounts(model)
    return problems


def _suspects(model: OwnershipState, region: Region) -> Iterator[int]:
    """Pages that are not plain host memory, without those that all three records give to the hypervisor."""
    states = model.vmemmap.states(region.base, region.size // PAGE_SIZE)
    marked = {region.base + match.start() * PAGE_SIZE for match in _NOT_OWNED.finditer(states)}
    host, hyp = _special_entries(model, region), _mapped_at_hyp(model, region)
    given = 0 if model.rules.state_in_pte else NOPAGE
    annotation = owner_annotation(Component.HYP)
    for page in marked | host.keys() | hyp.keys():
        entry = hyp.get(page, 0)
        settled = (
            host.get(page) == annotation
            and entry & (ADDR_MASK | DESC_VALID) == page | DESC_VALID
            and state_of(entry) == OWNED
            and states[(page - region.base) // PAGE_SIZE] == given
        )
        if not settled:
            yield page


def _special_entries(model: OwnershipState, region: Region) -> dict[int, int]:
    """Host entries that are an annotation or not the default mapping, by page."""
    table, found = model.host.table, {}
    for leaf in table.leaves(region.base, region.end, invalid=True):
        if table.is_counted(leaf.descriptor, leaf.level):
            for page in range(max(leaf.va, region.base), min(leaf.va + leaf.size, region.end), PAGE_SIZE):
                found[page] = leaf.descriptor
    return found


def _mapped_at_hyp(model: OwnershipState, region: Region) -> dict[int, int]:
    """Entries of the EL2 linear map, by page; blocks are never made there and count as wrong."""
    hyp, found = model.hyp, {}
    for leaf in hyp.leaves(hyp.va_of(region.base), hyp.va_of(region.base) + region.size):
        for page in range(hyp.pa_of(leaf.va), hyp.pa_of(leaf.va) + leaf.size, PAGE_SIZE):
            found[page] = leaf.descriptor
    return found


def _check_page(model: OwnershipState, page: int) -> Iterator[str]:
    state = model.host_state(page)
    leaf = model.host.get_leaf(page)
    hyp = model.hyp.walk(model.hyp.va_of(page))
    if leaf is None:
        yield f"page {page:#x}: the host stage-2 cannot hold it"
        return
    owner = None if leaf.valid else Component((leaf.descriptor & OWNER_MASK) >> OWNER_SHIFT)
    entry = f"host entry {leaf.descriptor:#x} at level {leaf.level}"
    what = f"page {page:#x} is {state_name(state)} for the host"
    if leaf.valid and leaf.pa != page:
        yield f"page {page:#x}: {entry} maps {leaf.pa:#x}"
    if hyp.valid and hyp.pa != page:
        yield f"page {page:#x}: EL2 entry {hyp.descriptor:#x} maps {hyp.pa:#x}"
    if state & NOPAGE and leaf.valid:
        yield f"{what}, but {entry} lets it in"
    if not state & (NOPAGE | MODULE_OWNED) and owner not in (None, Component.HOST):
        yield f"{what}, but {entry} names {owner.name if owner else 'nobody'} as owner"
    if state == OWNED and leaf.valid and model.host.table.is_counted(leaf.descriptor, leaf.level):
        yield f"{what}, but {entry} is restricted"
    yield from _check_hyp_side(model, what, state, owner, hyp.descriptor)


def _check_hyp_side(
    model: OwnershipState, what: str, state: int, owner: Component | None, descriptor: int
) -> Iterator[str]:
    mapped = bool(descriptor & DESC_VALID)
    hyp_state = state_of(descriptor)
    if owner is Component.HYP and not (mapped and hyp_state == OWNED):
        yield f"{what} and belongs to HYP, but EL2 does not map it as its own"
    if owner in (Component.PROTECTED, Component.GUEST) and mapped:
        yield f"{what} and belongs to {owner.name}, but EL2 maps it"
    if state in (OWNED, MODULE_OWNED) and mapped and not model.early_mappings:
        yield f"{what}, but EL2 maps it as {state_name(hyp_state)}"
    if state == SHARED_OWNED and mapped and hyp_state != SHARED_BORROWED:
        yield f"{what}, but EL2 maps it as {state_name(hyp_state)}"


def _check_refcounts(model: OwnershipState) -> Iterator[str]:
    """A table page must have one reference for itself and one for every counted entry; pins and lazy pages add more."""
    for name, table, counted in (
        ("host stage-2", model.host.table, model.host.table.is_counted),
        ("EL2", model.hyp, lambda descriptor, level: bool(descriptor & DESC_VALID)),
    ):
        pool = model.host.table.pool if name != "EL2" else model.hyp.pool
        for level, pa, first in table.tables():
            held = sum(1 for d in table.entries(pa, level) if d and counted(d, level))
            references = pool.page_count(pa)
            if references < held + 1:
                yield f"{name} table {pa:#x} for {first:#x}: {references} references, but {held} counted entries"
            for descriptor in table.entries(pa, level):
                if is_table(descriptor, level) and level < LAST_LEVEL and descriptor & ADDR_MASK not in pool:
                    yield f"{name} table {pa:#x} points at {descriptor & ADDR_MASK:#x}, which is not a table page"
