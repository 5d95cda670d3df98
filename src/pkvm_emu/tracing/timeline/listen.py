"""Begins a recording: puts the listeners where the machine tells what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.hyp.ownership_map import kind_from_words, kind_of
from pkvm_emu.hyp.trace_buffer import TraceBuffers
from pkvm_emu.kernel.tracing.events import TraceEventTable
from pkvm_emu.kernel.tracing.reader import Entry
from pkvm_emu.kernel.tracing.text import TraceText
from pkvm_emu.machine.pagetable import PAGE_SHIFT
from pkvm_emu.tracing.timeline.blocks import BlockListener
from pkvm_emu.tracing.timeline.functions import FunctionListener
from pkvm_emu.tracing.timeline.recorder import Open, PageChange, Timeline
from pkvm_emu.tracing.timeline.records import Level, Value
from pkvm_emu.tracing.timeline.services import ServiceListener
from pkvm_emu.tracing.timeline.traps import TrapListener

if TYPE_CHECKING:
    from collections.abc import Callable

    from pkvm_emu.hyp.ownership_log import PageEvent
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.machine.core import Service, ServiceResult
    from pkvm_emu.machine.exceptions import Taken
    from pkvm_emu.system import System


class Recording(TrapListener):
    """Everything that is recorded of one system."""

    def __init__(self, timeline: Timeline, instructions: bool) -> None:
        super().__init__(timeline)
        self._timeline = timeline
        system = timeline.system
        self._services = ServiceListener(timeline)
        self._functions = FunctionListener(timeline)
        if instructions:
            BlockListener(timeline)
        self._listen_to_core(system)
        system.machine.snapshots.on_snapshot = self._snapshot
        self._pages = system.hyp.ownership
        for event in self._pages.events:
            kind = kind_from_words(event.after)
            if kind is not None:
                timeline.page_changes.append(PageChange(timeline.last_ns, event, kind))
        self._pages.listen(self._page)
        system.hyp.part(TraceBuffers).listen(self._entry)
        for module in system.modules.values():
            if module.token:
                self.add_module(module)

    def add_module(self, module: LoadedModule) -> None:
        """The EL2 half of a module has its place."""
        self._functions.add_module(module)

    def _listen_to_core(self, system: System) -> None:
        core = system.machine.core
        for name, listener in (
            ("on_service", self._service),
            ("on_result", self._services_end),
            ("on_exception", self.taken),
            ("on_run", self._run),
        ):
            setattr(core, name, _both(listener, getattr(core, name)))
        answer = core.on_smc

        def on_smc() -> None:
            depth = self.smc_begins()
            if answer is not None:
                answer()
            self.smc_ends(depth)

        core.on_smc = on_smc

    def _service(self, service: Service, registers: tuple[int, ...]) -> None:
        if service.name == "op_inject_abort":
            self.injects()
        self._services.begins(service, registers)

    def _services_end(self, service: Service, result: ServiceResult) -> None:
        self._services.ends(service, result)

    def _run(self, pc: int | None) -> None:
        timeline = self._timeline
        if pc is None:
            timeline.run_ends()
            return
        timeline.run_begins()
        kernel = timeline.system.kernel
        if timeline.system.machine.core.el == 1:
            module = kernel.loader.find(pc)
            if module is not None:
                name = (module.describe(pc) or f"{pc:#x}").partition("+0x0/")[0]
                timeline.begin(Level.EL1, f"{name} [{module.name}]", Open("call"), pc=pc)

    # Page ownership, events, snapshots

    def _note_page_change(self, event: PageEvent) -> None:
        kind = kind_of(self._pages, event.pfn << PAGE_SHIFT)
        self._timeline.page_changes.append(PageChange(self._timeline.last_ns, event, kind))

    def _page(self, event: PageEvent) -> None:
        level = Level.EL2 if self._timeline.system.machine.core.depth else Level.EL1
        arguments: list[tuple[str, Value]] = [
            ("page", event.pfn << PAGE_SHIFT),
            ("pages", event.pages),
            ("before", event.before),
            ("after", event.after),
        ]
        if event.origin:
            arguments.append(("by", event.origin))
        self._timeline.instant(level, event.op, "page", tuple(arguments))
        self._note_page_change(event)

    def _entry(self, pa: int, size: int) -> None:
        """An entry of the hypervisor's trace buffer is published."""
        timeline = self._timeline
        kernel = timeline.system.kernel
        payload = kernel.machine.ram.read(pa, size)
        number = int.from_bytes(payload[:2], "little")
        event = kernel.part(TraceEventTable).get(number)
        if event is None:
            timeline.instant(Level.EL2, f"event {number}", "event")
            return
        arguments: list[tuple[str, Value]] = list(event.values(payload).items())
        line = kernel.part(TraceText).line(Entry(timeline.cpu, 0, pa, size, 0, 0), guest=False)
        text = line.decode("utf-8", "replace").partition(": ")[2].strip().removeprefix(event.name).strip()
        if text:
            arguments.append(("text", text))
        if event.module:
            arguments.append(("module", event.module))
        timeline.instant(Level.EL2, event.name, "event", tuple(arguments))

    def _snapshot(self, is_taken: bool) -> None:
        if not is_taken:
            self._timeline.forget_open()
        self._timeline.instant(Level.EL1, "snapshot" if is_taken else "restored", "snapshot")


def _both(first: Callable[..., None], second: Callable[..., None] | None) -> Callable[..., None]:
    if second is None:
        return first

    def both(*arguments: Service | ServiceResult | Taken | int | None) -> None:
        first(*arguments)
        second(*arguments)

    return both


def record(system: System, instructions: bool = True) -> tuple[Timeline, Recording]:
    """Begin to record a system.

    Args:
        system: one that does not run at the moment.
        instructions: count instructions and watch the blocks of code at EL2, which takes time.
    """
    timeline = Timeline(system)
    return timeline, Recording(timeline, instructions)
