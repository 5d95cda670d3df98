"""``system.trace_pipe``: the hypervisor's trace, as text or as events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.tracing.buffer import ALL_CPUS, HypTrace
from pkvm_emu.kernel.tracing.events import TraceEventTable

if TYPE_CHECKING:
    from pkvm_emu.system import System


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """One event out of the trace.

    Attributes:
        cpu: the CPU that wrote it.
        time_ns: nanoseconds since boot.
        name: the event; ``event 99`` for an id that nobody knows.
        fields: its fields by name.
        lost: events that were lost before this one, for lack of room.
    """

    cpu: int
    time_ns: int
    name: str
    fields: Mapping[str, int]
    lost: int = 0


class TracePipe:
    """The trace of a system; reading takes what is read out of it, as reading ``trace_pipe`` does.

    >>> system.fs.write("/sys/kernel/tracing/hypervisor/events/hypervisor/host_hcall/enable", "1")
    >>> system.fs.write("/sys/kernel/tracing/hypervisor/tracing_on", "1")
    >>> system.hvc(128)
    >>> print(system.trace_pipe.read(), end="")
    [000]	    0.000417: host_hcall id=128 invalid=0
    """

    def __init__(self, system: System) -> None:
        self._system = system

    def read(self, cpu: int | None = None) -> str:
        """What there is now, as the file ``trace_pipe`` has it; an empty string where there is nothing.

        Args:
            cpu: read only that CPU's buffer; None: all, in the order of time.

        Raises:
            UsageError: the system is not in protected mode, there is no such CPU, or no buffer could be loaded.
        """
        with self._open() as trace:
            out = bytearray()
            while chunk := trace.read_text(self._cpu(cpu)):
                out += chunk
            return out.decode("utf-8", "replace")

    def events(self, cpu: int | None = None) -> list[TracedEvent]:
        """The same as objects; arguments and errors as for :meth:`read`."""
        found = []
        table = self._system.kernel.part(TraceEventTable)
        with self._open() as trace:
            while (entry := trace.peek(self._cpu(cpu))) is not None:
                payload = self._system.machine.ram.read(entry.pa, entry.size)
                number = int.from_bytes(payload[:2], "little")
                event = table.get(number)
                fields = event.values(payload) if event is not None else {}
                name = event.name if event is not None else f"event {number}"
                found.append(TracedEvent(entry.cpu, entry.time_ns, name, MappingProxyType(fields), entry.lost))
                trace.consume(entry)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.read().splitlines())

    def _cpu(self, cpu: int | None) -> int:
        if cpu is None:
            return ALL_CPUS
        count = self._system.machine.profile.cpus
        if not 0 <= cpu < count:
            raise UsageError(f"there is no CPU {cpu}: the machine has CPUs 0 to {count - 1}")
        return cpu

    @contextmanager
    def _open(self) -> Iterator[HypTrace]:
        if not self._system.kernel.protected:
            raise UsageError("there is no hypervisor trace: the kernel is not in protected mode")
        trace = self._system.kernel.part(HypTrace)
        error = trace.open_reader()
        if error:
            raise UsageError(f"the trace buffer of {trace.size_kb} KiB cannot be loaded ({errno_name(error)})")
        try:
            yield trace
        finally:
            trace.close_reader()
