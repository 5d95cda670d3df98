"""What the page shows, as one JSON value: columns of numbers, and each string and argument list once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pkvm_emu.hyp.ownership_map import PageKind
from pkvm_emu.machine.pagetable import PAGE_SHIFT
from pkvm_emu.report.costs import costs
from pkvm_emu.tracing.timeline.blocks import FunctionCoverage, coverage
from pkvm_emu.tracing.timeline.chrome import json_value, where
from pkvm_emu.tracing.timeline.records import Arguments, Level

if TYPE_CHECKING:
    from pkvm_emu.system import System
    from pkvm_emu.tracing.timeline.recorder import Timeline
    from pkvm_emu.tracing.timeline.records import Slice

#: Name, arguments, result in words.
Called = tuple[str, Sequence[int], str]


class Interned:
    """Numbers values, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        """The number of a (hashable) value."""
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


def page_data(timeline: Timeline, calls: Sequence[Called] = ()) -> dict[str, Any]:
    """Everything that the page shows."""
    system = timeline.system
    slices = timeline.slices()
    strings = Interned()
    machine = system.machine
    return {
        "generation": system.generation.name,
        "machine": _machine(system),
        "modules": _modules(system),
        "boot": _boot(system, timeline),
        "counted": timeline.counts_instructions,
        "calls": [{"name": name, "args": [hex(a) for a in args], "result": result} for name, args, result in calls],
        "costs": costs(timeline, slices),
        "coverage": [_covered(function) for function in coverage(timeline)] if timeline.counts_instructions else [],
        "timeline": _timeline(timeline, slices, strings),
        "memory": _memory(timeline, strings, machine.ram.base, machine.ram.size),
        "log": [[record.level, record.time_ns, record.text] for record in system.kernel.log],
        "strings": strings.values,
    }


def _machine(system: System) -> dict[str, Any]:
    profile = system.machine.profile
    features = [name for name in ("pauth", "lpa2", "fgt", "bti", "lse") if getattr(profile, name)]
    return {
        "mode": "hVHE" if profile.hvhe else "nVHE",
        "features": features,
        "cpus": profile.cpus,
        "ram": profile.ram_size,
        "ramBase": profile.ram_base,
    }


def _boot(system: System, timeline: Timeline) -> dict[str, Any]:
    return {
        "outcomes": [
            {"name": outcome.name, "status": outcome.status, "reason": outcome.reason}
            for outcome in system.boot_report.outcomes
        ],
        "deprivileged": system.kernel.deprivileged,
        "secure": system.is_secure,
        "failure": timeline.failure,
    }


def _modules(system: System) -> list[dict[str, Any]]:
    return [
        {
            "name": module.name,
            "status": module.status,
            "token": hex(module.token),
            "hypercalls": dict(module.hypercalls),
        }
        for module in system.modules.values()
        if module.token
    ]


def _covered(function: FunctionCoverage) -> dict[str, Any]:
    files: dict[str, list[list[int]]] = {}
    for line in function.lines:
        files.setdefault(line.file, []).append([line.line, line.executed, line.total])
    return {
        "module": function.module,
        "name": function.name,
        "start": hex(function.start),
        "executed": function.executed,
        "total": function.total,
        "files": [{"file": file, "lines": sorted(lines)} for file, lines in files.items()],
    }


def _timeline(timeline: Timeline, slices: list[Slice], strings: Interned) -> dict[str, Any]:
    rows = sorted({(item.begin.cpu, item.begin.level) for item in slices})
    number = {row: index for index, row in enumerate(rows)}
    arguments = Interned()
    places: dict[tuple[int, Level, bool], int] = {}
    columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
    begins: dict[int, int] = {}
    flows = []
    for index, item in enumerate(slices):
        begin = item.begin
        key = (begin.pc, begin.level, begin.flow < 0)
        if key not in places:
            places[key] = strings.number(where(timeline, begin)) if begin.pc else -1
        values = (
            number[begin.cpu, begin.level],
            strings.number(begin.name),
            strings.number(begin.category),
            begin.time_ns,
            item.end_ns - begin.time_ns,
            item.order,
            item.end_order - item.order,
            item.depth,
            item.parent,
            item.instructions,
            arguments.number(_numbered(begin.arguments, strings)),
            arguments.number(_numbered(item.results, strings)),
            places[key],
            2 * item.is_instant + (not item.is_closed),
        )
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
        if begin.flow > 0:
            begins[begin.flow] = index
        elif begin.flow < 0 and -begin.flow in begins:
            flows.append([begins[-begin.flow], index])
    titles = [{"cpu": cpu, "title": f"CPU {cpu} {level.title}", "level": level.title} for cpu, level in rows]
    return {"rows": titles, "slices": columns, "arguments": arguments.values, "flows": flows}


_COLUMNS = (
    "row", "name", "category", "start", "length", "order", "span", "depth", "parent", "instructions", "arguments", "results",
    "where", "marks",
)  # fmt: skip


def _numbered(arguments: Arguments, strings: Interned) -> tuple[Any, ...]:
    """Name and value after each other, names by number."""
    found: list[Any] = []
    for name, value in arguments:
        found += [strings.number(name), json_value(value)]
    return tuple(found)


def _memory(timeline: Timeline, strings: Interned, base: int, size: int) -> dict[str, Any]:
    kinds = list(PageKind)
    return {
        "base": base >> PAGE_SHIFT,
        "pages": size >> PAGE_SHIFT,
        "kinds": [{"key": kind.name.lower(), "text": kind.text} for kind in kinds],
        "changes": [
            [
                change.time_ns,
                change.event.pfn,
                change.event.pages,
                kinds.index(change.kind),
                strings.number(change.event.op),
                strings.number(change.event.before),
                strings.number(change.event.after),
                strings.number(change.event.origin),
            ]
            for change in timeline.page_changes
        ],
    }
