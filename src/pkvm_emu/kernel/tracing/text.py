"""The lines of ``trace_pipe``: what the kernel's own events say here, and what the print function of a module writes.

Source: arch/arm64/kvm/hyp_trace.c, arch/arm64/include/asm/kvm_hyptrace.h (``struct ht_iterator``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pkvm_emu.abi.core_events import CORE_EVENTS, PRINTK
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.format_env import KernelFormatEnv
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.tracing.events import TraceEvent, TraceEventTable
from pkvm_emu.kernel.varargs import ValueArgs
from pkvm_emu.kernel.vsprintf import format_text
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.tracing.reader import Entry

# struct ht_iterator, as the print functions of modules see it.
_CPU, _ENT, _LOST, _ENT_CPU, _ENT_SIZE, _TS, _SEQ = 8, 16, 24, 32, 40, 48, 72
_ITERATOR_ORDER = 2
_NS_PER_US, _US_PER_SECOND = 1000, 1_000_000
_ALL_CPUS = 0xFFFF_FFFF
_EFAULT = b"(efault)"
_UNKNOWN_FORMAT = b"Unknown Format"


class TraceFormatEnv(KernelFormatEnv):
    """As ``printk`` reads, but for strings: a pointer out of a trace entry is one of EL2, which the host cannot follow."""

    def read_cstr(self, va: int, limit: int) -> bytes:
        try:
            return super().read_cstr(va, limit)
        except GuestFault:
            return _EFAULT


@kernel_part
class TraceText(State):
    """Turns entries into lines.

    Attributes:
        iterator: kernel VA of the ``struct ht_iterator`` that print functions get; 0 before the first needed one.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.trace_text")
        self._kernel = kernel
        self.iterator = 0

    @property
    def limit(self) -> int:
        """Bytes that one read collects (the room of a ``struct trace_seq``)."""
        return line_facts(self._kernel.generation.kernel).trace_seq_buffer[1]

    def line(self, entry: Entry, guest: bool = True) -> bytes:
        """The text of an entry, with the line about lost events before it where some were.

        ``guest=False``: without running the module's print function, from the event's print format (where no code can run).
        """
        microseconds = entry.time_ns // _NS_PER_US
        seconds, rest = divmod(microseconds, _US_PER_SECOND)
        head = f"CPU:{entry.cpu} [LOST {entry.lost} EVENTS]\n" if entry.lost else ""
        head += f"[{entry.cpu:03d}]\t{seconds:5d}.{rest:06d}: "
        payload = self._kernel.machine.ram.read(entry.pa, entry.size)
        number = int.from_bytes(payload[:2], "little")
        event = self._kernel.part(TraceEventTable).get(number)
        if event is None:
            return f"{head}Unknown event id {number}\n".encode()
        if not event.printer:
            body = self._core_text(event, payload)
        elif guest:
            return head.encode() + self._module_text(event, entry)
        else:
            from pkvm_emu.kernel.tracing.print_fmt import format_values

            body = format_values(event.print_fmt, event.values(payload), self._format)
        return head.encode() + event.name.encode() + b" " + body + b"\n"

    def _format(self, fmt: bytes, values: list[int]) -> bytes:
        try:
            return format_text(fmt, ValueArgs(values), TraceFormatEnv(self._kernel)).encode("latin-1", "replace")
        except GuestFault:
            return _EFAULT
        except ModuleError:
            # A format that wants more than its event has.
            return fmt

    def _core_text(self, event: TraceEvent, payload: bytes) -> bytes:
        values = list(event.values(payload).values())
        if len(values) < len(event.fields):
            return b"(short entry)"
        if event.name == PRINTK:
            fmt = self._kernel.part(TraceEventTable).printk_format(values[0])
            return self._format(_UNKNOWN_FORMAT if fmt is None else fmt, values[1:])
        text = CORE_EVENTS[event.name].text
        assert text is not None
        return self._format(text.encode(), values)

    def _module_text(self, event: TraceEvent, entry: Entry) -> bytes:
        """Run the module's print function on the entry; what it wrote into the iterator's ``seq``."""
        kernel, memory = self._kernel, self._kernel.memory
        if not self.iterator:
            pa = kernel.pages.alloc_pages(_ITERATOR_ORDER, zero=True)
            if pa is None:
                raise ModuleError("no memory is left to print trace events")
            self.iterator = memory.linear_va(pa)
        facts = line_facts(kernel.generation.kernel)
        seq = self.iterator + _SEQ
        at, room = facts.trace_seq_buffer
        for offset, value, size in (
            (_CPU, _ALL_CPUS, 4),
            (_ENT, memory.linear_va(entry.pa), 8),
            (_LOST, entry.lost, 8),
            (_ENT_CPU, entry.cpu, 4),
            (_ENT_SIZE, entry.size, 8),
            (_TS, entry.time_ns, 8),
        ):
            memory.write(self.iterator + offset, value.to_bytes(size, "little"))
        memory.write(seq + at, struct.pack("<QQQ", seq, room, 0))
        memory.write_u32(seq + facts.trace_seq_full, 0)
        kernel.call(event.printer, self.iterator)
        length = min(memory.read_u64(seq + at + 16), room)
        return memory.read(seq, length)
