"""A system with its trace files, as a test uses them."""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.hyp.trace_buffer import TraceBuffers
from pkvm_emu.hyp.trace_ring import TraceRing
from pkvm_emu.kernel.tracing.buffer import HypTrace
from pkvm_emu.system import System

Start = Callable[..., "Traced"]
ENTRY_BYTES = 8 + 2  # header words, id
PAGE_BYTES = 4080


class Traced:
    """A system, and short ways to its tracefs."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.root = f"/sys/kernel/tracing/{system.generation.tracefs_dir}"

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> str:
        return self.system.fs.read(self.path(name))

    def write(self, name: str, text: str) -> None:
        self.system.fs.write(self.path(name), text)

    def enable(self, *events: str) -> None:
        for event in events:
            self.write(f"events/{self.system.generation.tracefs_dir}/{event}/enable", "1\n")

    def disable(self, *events: str) -> None:
        for event in events:
            self.write(f"events/{self.system.generation.tracefs_dir}/{event}/enable", "0\n")

    def on(self) -> None:
        self.write("tracing_on", "1\n")

    def off(self) -> None:
        self.write("tracing_on", "0\n")

    def texts(self) -> list[str]:
        """The lines of the trace, without CPU and time."""
        return [text_of(line) for line in self.system.trace_pipe]

    def open(self, key: int = 5) -> int:
        """The hypercall of ``pkvm_events``: ``vault_open``, a printk, ``vault_close``."""
        return self.system.call("pkvm_events_hyp_open", key).x1

    def fill(self, events: int) -> None:
        """Make so many entries of ten bytes (``selftest``)."""
        for _ in range(events):
            self.system.hvc(self.system.generation.hypercalls["selftest_event"])

    @property
    def trace(self) -> HypTrace:
        return self.system.kernel.part(HypTrace)

    def ring(self, cpu: int = 0) -> TraceRing:
        ring = self.system.hyp.part(TraceBuffers).ring(cpu)
        assert ring is not None
        return ring


def text_of(line: str) -> str:
    """A line without CPU and time; a line about lost events as it is."""
    return line.partition(": ")[2] if line.startswith("[") else line
