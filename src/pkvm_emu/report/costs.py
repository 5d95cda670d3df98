"""How often things were called at EL2, how often they failed, and what they cost in instructions."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, Any

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.tracing.timeline.records import Arguments, Level

if TYPE_CHECKING:
    from pkvm_emu.tracing.timeline.recorder import Timeline
    from pkvm_emu.tracing.timeline.records import Slice

_LARGEST_ERRNO = 4095
_SMCCC_NOT_SUPPORTED = -1


def costs(timeline: Timeline, slices: Iterable[Slice]) -> dict[str, list[dict[str, Any]]]:
    """A row for each hypercall, SMC, abort, op and function that was seen at EL2, the most frequent first."""
    groups: dict[tuple[str, str], list[Slice]] = {}
    for item in slices:
        # Of an SMC only what the hypervisor does about it, not how it goes on to EL3.
        is_trap = item.begin.category in ("hvc", "smc", "abort", "trap") and item.begin.flow < 0
        if item.begin.level is Level.EL2 and (is_trap or item.begin.category in ("op", "function")):
            groups.setdefault((item.begin.category, item.begin.name), []).append(item)
    found: dict[str, list[dict[str, Any]]] = {"traps": [], "ops": [], "functions": []}
    for (category, name), items in groups.items():
        table = {"op": "ops", "function": "functions"}.get(category, "traps")
        found[table].append(_row(category, name, items, timeline.counts_instructions))
    for rows in found.values():
        rows.sort(key=lambda row: (-row["calls"], row["name"]))
    return found


def _row(category: str, name: str, items: list[Slice], is_counted: bool) -> dict[str, Any]:
    refused: dict[str, int] = {}
    for item in items:
        error = error_of(category, item.results)
        if error is not None:
            refused[error] = refused.get(error, 0) + 1
    row = {"kind": category, "name": name, "calls": len(items), "refused": refused}
    if is_counted:
        spent = sorted(item.instructions for item in items)
        row |= {"min": spent[0], "median": int(median(spent)), "max": spent[-1], "total": sum(spent)}
    return row


def error_of(category: str, results: Arguments) -> str | None:
    """The error that a call ended with, in a word; None where it did not.

    >>> error_of("op", (("result", -1),))
    'EPERM'
    """
    values = dict(results)
    if category == "op":
        return _errno(values.get("result", 0))
    if category == "hvc":
        if values.get("x0") == _SMCCC_NOT_SUPPORTED:
            return "NOT_SUPPORTED"
        return _errno(values.get("x1", 0))
    if category == "smc" and values.get("x0") == _SMCCC_NOT_SUPPORTED:
        return "NOT_SUPPORTED"
    return None


def _errno(value: int | str) -> str | None:
    if isinstance(value, str) or not -_LARGEST_ERRNO <= value < 0:
        return None
    return errno_name(-value) or str(value)
