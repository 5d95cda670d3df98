"""Page ownership over time: the state at any moment from the transitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.hyp.ownership_map import PageKind

if TYPE_CHECKING:
    from pkvm_emu.tracing.timeline.recorder import Timeline


def counts_over_time(timeline: Timeline) -> Iterator[tuple[int, dict[PageKind, int]]]:
    """After each moment with transitions: how many pages are of each kind, those that are the host's alone left out."""
    kinds: dict[int, PageKind] = {}
    counts: dict[PageKind, int] = {}
    changes = list(timeline.page_changes)
    for index, change in enumerate(changes):
        event = change.event
        for pfn in range(event.pfn, event.pfn + event.pages):
            before = kinds.pop(pfn, None)
            if before is not None:
                counts[before] -= 1
            if change.kind is not PageKind.HOST:
                kinds[pfn] = change.kind
                counts[change.kind] = counts.get(change.kind, 0) + 1
        if index + 1 == len(changes) or changes[index + 1].time_ns != change.time_ns:
            yield change.time_ns, dict(counts)
