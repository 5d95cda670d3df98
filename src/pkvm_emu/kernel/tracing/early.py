"""Tracing from the command line: ``hyp_event=``, ``hyp_trace_printk``, and what a panic shows of the trace.

Source: arch/arm64/kvm/{hyp_events,hyp_trace}.c. The kernel finds with ``hyp_event=`` the events of the core and, at best, of the
first module that has any; here those of all modules are found, unless ``pkvm_emu.hyp_event=kernel`` asks for the kernel's limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.hyp_panic import HypPanicHandler
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.tracing.buffer import ALL_CPUS, HypTrace
from pkvm_emu.kernel.tracing.events import TraceEventTable
from pkvm_emu.kernel.tracing.text import TraceText
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.hyp.panic import PanicState
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.tracing.reader import Entry

_WARNING, _EMERGENCY = 4, 0
_PANIC_LINES = 64
BEGIN_MARK, END_MARK = "pkvm_emu: ---[ hypervisor trace ]---", "pkvm_emu: ---[ end hypervisor trace ]---"


def start(kernel: Kernel, hyp: Hypervisor) -> None:
    """Do what the command line asks for, at the point of the boot where the files of tracing come up."""
    if not kernel.protected:
        return
    early = kernel.part(EarlyTracing)
    early.start()
    if not early.mirrors:
        return
    core = kernel.machine.core
    after = core.after_run

    def after_run() -> None:
        after()
        kernel.part(EarlyTracing).follow()

    core.after_run = after_run
    panic = HypPanicHandler(kernel, hyp.stage1.linear_offset)

    def report(state: PanicState, explanation: str) -> None:
        kernel.part(EarlyTracing).dump(hyp)
        panic.report(state, explanation)

    hyp.panic.set_reporter(report)


@kernel_part
class EarlyTracing(State):
    """What the command line asked for.

    Attributes:
        mirrors: trace lines go to the kernel log (``hyp_trace_printk``).
        busy: they are being printed.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.early_tracing")
        self._kernel = kernel
        self._rules = kernel.generation.tracing
        names = (kernel.command_line.get("hyp_event") or "").split(",")
        self._names = [name for name in names if name]
        self._as_kernel = kernel.command_line.get("pkvm_emu.hyp_event") == "kernel"
        self.mirrors = False
        self.busy = False

    def start(self) -> None:
        """The files of tracing come up: core events are enabled, and the kernel log begins to follow."""
        self.enable_events(core_only=True)
        value = self._kernel.command_line.get("hyp_trace_printk")
        if value is not None and value not in ("0", "off"):
            if self._kernel.part(HypTrace).open_reader():
                self._kernel.log.write("Failed to init ht_printk", _WARNING)
            else:
                self.mirrors = True

    def module_loaded(self) -> None:
        """The EL2 half of a module is up: its events are enabled too."""
        if not self._as_kernel or self._rules.early_events != "none":
            self.enable_events(core_only=False)
        self.follow()

    def enable_events(self, core_only: bool) -> None:
        """Enable those events of ``hyp_event=`` that exist; with the first one tracing begins."""
        table, log = self._kernel.part(TraceEventTable), self._kernel.log
        searched = 0 if core_only else 1 if self._as_kernel else None
        found = False
        for name in self._names:
            event = table.find(name, searched)
            if event is None:
                message = self._rules.unknown_event_message
                if message is not None and core_only and self._as_kernel:
                    log.write(message.replace("%s", name), _WARNING)
                continue
            error = table.enable(event, True)
            if error:
                log.write(f"Couldn't enable hyp event {name}:{error}", _WARNING)
            else:
                found = True
        if found:
            error = self._kernel.part(HypTrace).start()
            if error:
                log.write(f"Failed to start early events tracing: {error}", _WARNING)

    def follow(self) -> None:
        """Print what came into the trace since last time (the kernel looks every 100 ms)."""
        trace = self._kernel.part(HypTrace)
        if not self.mirrors or self.busy or self._kernel.machine.core.depth or not trace.has_events:
            return
        self.busy = True
        try:
            text = self._kernel.part(TraceText)
            while (entry := trace.peek(ALL_CPUS)) is not None:
                line = text.line(entry).decode("utf-8", "replace")
                self._kernel.log.printk(line)
                trace.consume(entry)
        finally:
            self.busy = False

    def dump(self, hyp: Hypervisor) -> None:
        """The hypervisor has panicked: log what is left in its buffers, between two marks, without its help."""
        lines = self._left_over(hyp)
        self._kernel.log.write(BEGIN_MARK, _EMERGENCY)
        for line in lines[-_PANIC_LINES:]:
            self._kernel.log.write(line, _EMERGENCY)
        self._kernel.log.write(END_MARK, _EMERGENCY)

    def _left_over(self, hyp: Hypervisor) -> list[str]:
        """The lines of all events that nobody has read, in the order of time."""
        from pkvm_emu.hyp.trace_buffer import TraceBuffers

        entries: list[Entry] = []
        for cpu, reader in self._kernel.part(HypTrace).cpus.items():
            ring = hyp.part(TraceBuffers).ring(cpu)
            if ring is not None:
                entries += reader.remaining(ring.unread())
        text = self._kernel.part(TraceText)
        entries.sort(key=lambda entry: (entry.time_ns, entry.cpu))
        return [text.line(entry, guest=False).decode("utf-8", "replace").rstrip("\n") for entry in entries]
