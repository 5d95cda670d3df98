"""The events that the host knows: those of the hypervisor's core, and those of each module that was loaded.

Source: arch/arm64/kvm/hyp_events.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.core_events import CORE_EVENTS, FUNCTION_EVENTS, EventField
from pkvm_emu.abi.generation import EVENTS_SECTION, PRINTK_SECTION
from pkvm_emu.abi.structs import HYP_EVENT, HYP_EVENT_ID, HYP_PRINTK_FMT, TRACE_EVENT_FIELDS
from pkvm_emu.hyp.trace_layout import ENTRY_ID_SIZE
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.elf.elements import Section
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

_EVENT_IDS_SECTION = ".hyp.event_ids"
_FIELDS_LIMIT = 64
_WARNING, _ERROR = 4, 3


class TraceEvent(NamedTuple):
    """One event as the host knows it.

    Attributes:
        name: the name of its directory.
        id: its number in the buffer.
        fields: in the order they lie in the buffer, behind the id.
        print_fmt: the last line of its ``format``.
        printer: EL1 address of the module's function that writes its line; 0 for events of the core.
        enabled_flag: EL1 address of the host's flag; 0 for events of the core.
        module: the module it came with; empty for the core.
    """

    name: str
    id: int
    fields: tuple[EventField, ...]
    print_fmt: str
    printer: int = 0
    enabled_flag: int = 0
    module: str = ""

    @property
    def format(self) -> str:
        """The text of its ``format`` file."""
        lines = [f"name: {self.name}", f"ID: {self.id}", "format:"]
        lines += ["\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;", ""]
        offset = ENTRY_ID_SIZE
        for field in self.fields:
            lines.append(
                f"\tfield:{field.type} {field.name};\toffset:{offset};\tsize:{field.size};"
                f"\tsigned:{int(field.is_signed)};"
            )
            offset += field.size
        if self.fields:
            lines.append("")
        return "\n".join([*lines, f"print fmt: {self.print_fmt}", ""])

    def values(self, payload: bytes) -> dict[str, int]:
        """The fields of an entry, whose id comes first; those that it is too short for are left out."""
        out: dict[str, int] = {}
        offset = ENTRY_ID_SIZE
        for field in self.fields:
            raw = payload[offset : offset + field.size]
            if len(raw) < field.size:
                break
            out[field.name] = int.from_bytes(raw, "little", signed=field.is_signed)
            offset += field.size
        return out


@kernel_part
class TraceEventTable(State):
    """The events of one kernel.

    Attributes:
        by_id: all events; the number is the place.
        enabled: ids of enabled events.
        formats: EL1 addresses of the printk formats, by number.
        modules: modules with events, in the order of their loading.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.trace_events")
        self._kernel = kernel
        self._rules = kernel.generation.tracing
        self.by_id: StateList[TraceEvent] = StateList(journal)
        self.enabled: StateDict[int, bool] = StateDict(journal)
        self.formats: StateList[int] = StateList(journal)
        self.modules: StateList[str] = StateList(journal)
        for number, name in enumerate(self._rules.core_events):
            core = CORE_EVENTS[name]
            self.by_id.append(TraceEvent(name, number, core.fields, core.print_fmt))

    def __iter__(self) -> Iterator[TraceEvent]:
        return iter(self.by_id)

    def get(self, number: int) -> TraceEvent | None:
        """The event with an id."""
        return self.by_id[number] if 0 <= number < len(self.by_id) else None

    def find(self, name: str, modules: int | None = None) -> TraceEvent | None:
        """The first event of a name, looked up in the core and the first ``modules`` modules with events (None: all)."""
        searched = ["", *list(self.modules)[:modules]]
        return next((event for event in self.by_id if event.name == name and event.module in searched), None)

    def enable(self, event: TraceEvent, on: bool) -> int:
        """Switch an event by hypercall, unless it is so already; 0 or -errno."""
        from pkvm_emu.kernel.exports.pkvm import hypercall

        if on == (event.id in self.enabled):
            return 0
        if event.name in FUNCTION_EVENTS and on:
            self._sync_functions(True)
        answer = hypercall(self._kernel, "enable_event", event.id, int(on))
        result = ((answer[1] & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31) if not answer[0] else -1
        if result:
            return result
        if on:
            self.enabled[event.id] = True
        else:
            self.enabled.pop(event.id, None)
        self._store_flag(event, on)
        if event.name in FUNCTION_EVENTS and not on:
            self._sync_functions(any(e.name in FUNCTION_EVENTS and e.id in self.enabled for e in self.by_id))
        return 0

    def _sync_functions(self, wanted: bool) -> None:
        from pkvm_emu.kernel.tracing.functions import TracedFunctions

        self._kernel.part(TracedFunctions).sync(wanted, False)

    def _store_flag(self, event: TraceEvent, on: bool) -> None:
        """The host's own flag, where the module keeps one in memory that is the host's."""
        module = self._kernel.loader.modules.get(event.module)
        if module is not None and event.enabled_flag and _is_el1(module, event.enabled_flag):
            self._kernel.memory.write(event.enabled_flag, bytes((on,)))

    # Modules

    def add_module(self, module: LoadedModule) -> None:
        """Give the events and printk formats of a module their numbers, before its sections are mapped at EL2.

        The numbers are written where the hypervisor and the module's code look for them.
        """
        memory, log = self._kernel.memory, self._kernel.log
        ids = _placed(module, _EVENT_IDS_SECTION)
        rows = _rows(module, EVENTS_SECTION, HYP_EVENT.size)
        if rows and self._rules.module_events == "none":
            generation = self._kernel.generation.name
            log.write(f"pkvm_emu: {module.name}: {len(rows)} events, but {generation} has none for modules", _WARNING)
            rows = []
        if rows and ids is None:
            log.write(f"WARNING: {module.name}: events without a section {_EVENT_IDS_SECTION}", _WARNING)
            return
        if rows:
            self.modules.append(module.name)
        for position, va in enumerate(rows):
            number = len(self.by_id)
            memory.write_u32(va + HYP_EVENT.offset("id"), number)
            assert ids is not None
            memory.write(ids + position * HYP_EVENT_ID.size, number.to_bytes(2, "little"))
            self.by_id.append(self._read_event(module, va, number))
        formats = _rows(module, PRINTK_SECTION, HYP_PRINTK_FMT.size) if self._rules.module_printk else []
        if len(self.formats) + len(formats) > self._rules.max_printk_formats:
            if formats:
                log.write("Too many trace_hyp_printk()!", _WARNING)
            return
        if formats and ids is not None:
            # One byte a call behind the ids: how many formats were known before this module's.
            memory.write(ids + len(rows) * HYP_EVENT_ID.size, bytes((len(self.formats),)) * len(formats))
            self.formats.extend(formats)

    def _read_event(self, module: LoadedModule, va: int, number: int) -> TraceEvent:
        memory = self._kernel.memory
        row = memory.read(va, HYP_EVENT.size)
        name = memory.read_cstr(va, HYP_EVENT.fields["name"].size).decode("utf-8", "replace")
        print_fmt = memory.read_cstr(HYP_EVENT.get(row, "print_fmt")).decode("utf-8", "replace")
        fields: list[EventField] = []
        at = HYP_EVENT.get(row, "fields")
        while len(fields) < _FIELDS_LIMIT:
            field = memory.read(at, TRACE_EVENT_FIELDS.size)
            if not TRACE_EVENT_FIELDS.get(field, "name"):
                break
            kind, label = (
                memory.read_cstr(TRACE_EVENT_FIELDS.get(field, key)).decode("utf-8", "replace")
                for key in ("type", "name")
            )
            size, is_signed = (TRACE_EVENT_FIELDS.get(field, key) for key in ("size", "is_signed"))
            fields.append(EventField(kind, label, size, bool(is_signed)))
            at += TRACE_EVENT_FIELDS.size
        return TraceEvent(
            name,
            number,
            tuple(fields),
            print_fmt,
            HYP_EVENT.get(row, "trace_func"),
            HYP_EVENT.get(row, "enabled"),
            module.name,
        )

    def printk_format(self, number: int) -> bytes | None:
        """The printk format with a number."""
        if not 0 <= number < len(self.formats):
            return None
        return self._kernel.memory.read_cstr(self.formats[number], HYP_PRINTK_FMT.size)


def has_events(module: LoadedModule) -> bool:
    """Whether a module brings events or printk formats."""
    return any(_placed(module, name) is not None for name in (EVENTS_SECTION, PRINTK_SECTION))


def _section(module: LoadedModule, name: str) -> Section | None:
    section = module.file.section(name)
    return section if section is not None and section.size and section.index in module.layout.placements else None


def _placed(module: LoadedModule, name: str) -> int | None:
    section = _section(module, name)
    return module.layout.placements[section.index] if section is not None else None


def _rows(module: LoadedModule, name: str, size: int) -> list[int]:
    section = _section(module, name)
    if section is None:
        return []
    start = module.layout.placements[section.index]
    return [start + position for position in range(0, section.size - size + 1, size)]


def _is_el1(module: LoadedModule, va: int) -> bool:
    region = next((r for r in module.layout.regions if r.va <= va < r.va + r.size), None)
    return region is not None and not region.name.startswith(".hyp.")
