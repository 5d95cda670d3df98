"""Recordings in the Trace Event Format (JSON), which https://ui.perfetto.dev and chrome://tracing open.

A machine is a process, and each CPU has a thread for each exception level that was seen. Source of the format: the document "Trace
Event Format" of the Chromium project: ``B`` and ``E`` nest in a thread, ``i`` is an instant, ``s`` and ``f`` are the ends of an
arrow, ``C`` is a counter, ``M`` names things; ``ts`` is in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.ownership_map import PageKind
from pkvm_emu.tracing.timeline.records import Arguments, Level, Phase, Record, Value

if TYPE_CHECKING:
    from pkvm_emu.tracing.timeline.recorder import Timeline

_LOG_THREAD = 1000
_PLAIN_NUMBERS = 10
_NS_PER_US = 1000
_FLOW_NAMES = {"hvc": "HVC", "smc": "SMC", "abort": "abort", "trap": "trap"}
#: What the counter of page ownership shows.
_COUNTED = {
    PageKind.HYP: "hypervisor",
    PageKind.SHARED: "shared",
    PageKind.MODULE: "permission set by a module",
    PageKind.GUEST: "guests",
}


def save(path: str | Path, *timelines: Timeline) -> None:
    """Write recordings, one process each; see :meth:`Timeline.save`."""
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ns", "otherData": ')
            json.dump(_facts(timelines), file)
            file.write(', "traceEvents": [\n')
            separator = ""
            for event in trace_events(*timelines):
                file.write(separator)
                json.dump(event, file, separators=(",", ":"))
                separator = ",\n"
            file.write("\n]}\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: the timeline cannot be written there") from error


def _facts(timelines: tuple[Timeline, ...]) -> dict[str, Any]:
    return {
        "generations": [timeline.system.generation.name for timeline in timelines],
        "clock": "the generic counter: nanoseconds since boot; between two of its steps an instruction at EL2 is 1 ns",
        "counter_hz": [timeline.system.machine.profile.counter_hz for timeline in timelines],
        "failures": [timeline.failure for timeline in timelines],
    }


def trace_events(*timelines: Timeline) -> Iterator[dict[str, Any]]:
    """The events of recordings, those of each machine in the order in which they were made."""
    for process, timeline in enumerate(timelines, 1):
        yield from _process(timeline, process)


def _process(timeline: Timeline, pid: int) -> Iterator[dict[str, Any]]:
    profile = timeline.system.machine.profile
    cpus = f"{profile.cpus} CPU" + "s" * (profile.cpus > 1)
    name = f"{timeline.system.generation.name}, {cpus}"
    yield _meta(pid, 0, "process_name", name=name)
    yield _meta(pid, 0, "process_sort_index", sort_index=pid)
    records = list(timeline)
    for cpu, level in sorted({(record.cpu, record.level) for record in records}):
        tid = _thread(cpu, level)
        yield _meta(pid, tid, "thread_name", name=f"CPU {cpu} {level.title}")
        yield _meta(pid, tid, "thread_sort_index", sort_index=tid)
    yield _meta(pid, _LOG_THREAD, "thread_name", name="kernel log")
    yield _meta(pid, _LOG_THREAD, "thread_sort_index", sort_index=_LOG_THREAD)
    open_rows: dict[int, list[tuple[Record, int]]] = {}
    executed: dict[int, int] = {}
    last = 0
    for record in records:
        last = max(last, record.time_ns)
        yield from _event(timeline, pid, record, open_rows, executed)
    # What did not end is as long as the recording.
    for tid, row in open_rows.items():
        for _ in row:
            yield {"ph": "E", "pid": pid, "tid": tid, "ts": _us(last)}
    yield from _page_counters(timeline, pid)
    for line in timeline.system.kernel.log:
        event = {"ph": "i", "pid": pid, "tid": _LOG_THREAD, "ts": _us(line.time_ns), "s": "t", "cat": "log"}
        yield {**event, "name": line.text, "args": {"level": line.level}}


def _event(
    timeline: Timeline,
    pid: int,
    record: Record,
    open_rows: dict[int, list[tuple[Record, int]]],
    executed: dict[int, int],
) -> Iterator[dict[str, Any]]:
    tid = _thread(record.cpu, record.level)
    done = executed[record.cpu] = executed.get(record.cpu, 0) + record.instructions
    event: dict[str, Any] = {"ph": record.phase.value, "pid": pid, "tid": tid, "ts": _us(record.time_ns)}
    row = open_rows.setdefault(tid, [])
    if record.phase is Phase.END:
        _, first = row.pop()
        arguments = _arguments(record.arguments)
        if timeline.counts_instructions and record.level is not Level.EL3:
            arguments["instructions at EL2"] = done - first
        yield {**event, "args": arguments} if arguments else event
        return
    arguments = _arguments(record.arguments)
    if record.pc:
        arguments["at"] = where(timeline, record)
    event |= {"name": record.name, "cat": record.category, "args": arguments}
    if record.phase is Phase.INSTANT:
        event["s"] = "t"
    else:
        row.append((record, done))
    yield event
    if record.flow:
        flow = {"cat": record.category, "name": _FLOW_NAMES.get(record.category, record.category)}
        flow |= {"ph": "s"} if record.flow > 0 else {"ph": "f", "bp": "e"}
        yield {**flow, "pid": pid, "tid": tid, "ts": event["ts"], "id": pid << 32 | abs(record.flow)}


def _page_counters(timeline: Timeline, pid: int) -> Iterator[dict[str, Any]]:
    """How many pages are not the host's alone, as a counter."""
    from pkvm_emu.tracing.timeline.pages import counts_over_time

    for time_ns, counts in counts_over_time(timeline):
        shown = {text: counts.get(kind, 0) for kind, text in _COUNTED.items()}
        yield {"ph": "C", "pid": pid, "tid": 0, "ts": _us(time_ns), "name": "pages", "args": shown}


def where(timeline: Timeline, record: Record) -> str:
    """The instruction that caused a record: symbol, and source line where there is one."""
    if record.level is Level.GUEST:
        return f"guest {record.pc:#x}"
    # A trap is caused by the instruction below that it came from.
    from_below = record.level is Level.EL2 and record.category in ("hvc", "smc", "abort", "trap") and record.flow < 0
    el = 1 if record.level is Level.EL1 or from_below else 2
    return timeline.system.machine.core.describe(record.pc, el)


def _arguments(arguments: Arguments) -> dict[str, Any]:
    return {name: json_value(value) for name, value in arguments}


def json_value(value: Value) -> Any:
    """A value for JSON: numbers that are more than a digit in hexadecimal, as addresses are read (and 64 bits are kept)."""
    if isinstance(value, str) or -_PLAIN_NUMBERS < value < _PLAIN_NUMBERS:
        return value
    return value if value < 0 else f"{value:#x}"


def _meta(pid: int, tid: int, what: str, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": what, "args": arguments}


def _thread(cpu: int, level: Level) -> int:
    return (cpu + 1) * 10 + level


def _us(time_ns: int) -> float:
    return time_ns / _NS_PER_US
