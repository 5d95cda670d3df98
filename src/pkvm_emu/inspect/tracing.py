"""Trace events and printk formats that a module declares for EL2 (android15 and later)."""

from __future__ import annotations

from dataclasses import dataclass

from pkvm_emu.abi.generation import EVENTS_SECTION, PRINTK_SECTION
from pkvm_emu.abi.structs import HYP_EVENT, HYP_PRINTK_FMT, TRACE_EVENT_FIELDS
from pkvm_emu.elf.elements import printable
from pkvm_emu.inspect.program import Program

_FIELDS_LIMIT = 64
_ROWS_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class EventField:
    """One field of an event: C type, name, bytes."""

    type: str
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event: its name below ``events/hypervisor``, its print format and fields."""

    name: str
    print_fmt: str | None
    fields: list[EventField]


@dataclass(frozen=True, slots=True)
class TracingFacts:
    """Events and ``trace_hyp_printk`` formats in table order."""

    events: list[TraceEvent]
    printk_formats: list[str]


def read_tracing(program: Program) -> TracingFacts:
    """Read the tables of ``_hyp_events`` and ``.hyp.printk_fmts``."""
    return TracingFacts(_events(program), _formats(program))


def _table(program: Program, name: str, size: int) -> list[tuple[int, bytes]]:
    section = program.file.section(name)
    if section is None or section.index not in program.image.layout.placements:
        return []
    start = program.va_of(section)
    rows = range(start, start + section.size - size + 1, size)[:_ROWS_LIMIT]
    return [(va, program.image.read(va, size)) for va in rows]


def _events(program: Program) -> list[TraceEvent]:
    events = []
    name_at = HYP_EVENT.fields["name"]
    for _, row in _table(program, EVENTS_SECTION, HYP_EVENT.size):
        name = _text(row[name_at.offset : name_at.offset + name_at.size])
        fmt = program.string(HYP_EVENT.get(row, "print_fmt"))
        events.append(TraceEvent(name, fmt, _fields(program, HYP_EVENT.get(row, "fields"))))
    return events


def _fields(program: Program, va: int) -> list[EventField]:
    fields = []
    size = TRACE_EVENT_FIELDS.size
    for at in range(va, va + _FIELDS_LIMIT * size, size):
        if program.image.section_at(at, size) is None:
            break
        row = program.image.read(at, size)
        kind = program.string(TRACE_EVENT_FIELDS.get(row, "type"))
        name = program.string(TRACE_EVENT_FIELDS.get(row, "name"))
        if kind is None or name is None:
            break
        fields.append(EventField(kind, name, TRACE_EVENT_FIELDS.get(row, "size")))
    return fields


def _formats(program: Program) -> list[str]:
    return [_text(row) for _, row in _table(program, PRINTK_SECTION, HYP_PRINTK_FMT.size)]


def _text(data: bytes) -> str:
    return printable(data.partition(b"\0")[0].decode("utf-8", "replace"))
