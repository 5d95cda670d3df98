"""Trace events of modules (``kernel/trace``): what the code that TRACE_EVENT generates calls.

The kernel's own ring buffer is not here: an event that is on is recorded with its bytes (``kernel.part(TraceEvents)``), and what
its print function prints is kept as text.
"""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.kernel.guest_access import load, load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import S32, U32, U64, Ptr, VarArgs
from pkvm_emu.machine.state import State, StateDict, StateList

_HANDLED = 1
_FIRST_DYNAMIC_TYPE = 20
#: ``struct trace_event_buffer``: buffer @0, event @8, trace_file @16, entry @24.
_EVENT, _FILE, _ENTRY = 8, 16, 24
#: ``struct trace_event_call``: class @16, event.type @48.
_TYPE = 48


class Recorded(NamedTuple):
    """An event: nanoseconds since boot, the ``struct trace_event_file`` it was for, its bytes."""

    time: int
    file: int
    data: bytes


@kernel_part
class TraceEvents(State):
    """Events that modules recorded, and text that their print functions made.

    Args:
        kernel: whose events.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.trace_events")
        self.records: StateList[Recorded] = StateList(journal, "kernel.trace_events.records")
        self.text: StateList[str] = StateList(journal, "kernel.trace_events.text")
        self.reserved: StateDict[int, int] = StateDict(journal, "kernel.trace_events.reserved")
        self.next_type = _FIRST_DYNAMIC_TYPE


@kernel_symbol("trace_event_raw_init", runs_guest=True)
def trace_event_raw_init(kernel: Kernel, call: Ptr) -> int:
    """Give an event its number: 0."""
    events = kernel.part(TraceEvents)
    store_uint(kernel, call + _TYPE, events.next_type, 4)
    events.next_type += 1
    return 0


@kernel_symbol("trace_event_reg", runs_guest=True)
def trace_event_reg(kernel: Kernel, call: Ptr, kind: U32, data: Ptr) -> int:
    """Switch an event on or off for a reader: there is none in the kernel, so nothing changes: 0."""
    return 0


@kernel_symbol("__trace_trigger_soft_disabled")
def trace_trigger_soft_disabled(kernel: Kernel, file: Ptr) -> int:
    """Whether a trigger keeps an event from being recorded: there are none."""
    return 0


@kernel_symbol("trace_event_ignore_this_pid")
def trace_event_ignore_this_pid(kernel: Kernel, file: Ptr) -> int:
    """Whether the task is filtered out: no."""
    return 0


@kernel_symbol("trace_event_buffer_reserve", runs_guest=True)
def trace_event_buffer_reserve(kernel: Kernel, buffer: Ptr, file: Ptr, length: U64) -> int:
    """Room for an event, or NULL without memory."""
    entry = kernel.part(Slab).kmalloc(max(length, 8)) or 0
    if entry:
        kernel.part(TraceEvents).reserved[entry] = length
        store_uint(kernel, buffer + _EVENT, entry, 8)
        store_uint(kernel, buffer + _FILE, file, 8)
        store_uint(kernel, buffer + _ENTRY, entry, 8)
    return entry


@kernel_symbol("trace_event_buffer_commit", runs_guest=True)
def trace_event_buffer_commit(kernel: Kernel, buffer: Ptr) -> None:
    """The event is complete."""
    events = kernel.part(TraceEvents)
    entry, file = load_u64(kernel, buffer + _ENTRY), load_u64(kernel, buffer + _FILE)
    length = events.reserved.pop(entry, None)
    if length is not None:
        events.records.append(Recorded(kernel.uptime_ns(), file, load(kernel, entry, length)))
        kernel.part(Slab).kfree(entry)


# Printing


@kernel_symbol("trace_raw_output_prep", "trace_print_bitmask_seq")
def trace_raw_output_prep(kernel: Kernel, iterator: Ptr, event: Ptr) -> int:
    """Begin a line: TRACE_TYPE_HANDLED."""
    return _HANDLED


@kernel_symbol("trace_event_printf", runs_guest=True)
def trace_event_printf(kernel: Kernel, iterator: Ptr, fmt: Ptr, arguments: VarArgs) -> None:
    """A line of an event."""
    kernel.part(TraceEvents).text.append(kernel.format(kernel.read_cstr(fmt), arguments).rstrip("\n"))


@kernel_symbol("trace_handle_return")
def trace_handle_return(kernel: Kernel, seq: Ptr) -> int:
    """What a print function returns: TRACE_TYPE_HANDLED, the line has room."""
    return _HANDLED


# perf and BPF: nobody listens


@kernel_symbol("perf_trace_buf_alloc", runs_guest=True)
def perf_trace_buf_alloc(kernel: Kernel, size: S32, registers: Ptr, context: Ptr) -> int:
    """Room for a perf event: NULL, as no perf event is open."""
    return 0


@kernel_symbol("perf_trace_run_bpf_submit")
def perf_trace_run_bpf_submit(kernel: Kernel, entry: Ptr, size: S32, context: S32, call: Ptr, count: U64) -> None:
    """Give an event to BPF programs and perf: there are none."""


@kernel_symbol(*(f"bpf_trace_run{count}" for count in range(1, 13)))
def bpf_trace_run(kernel: Kernel, link: Ptr) -> None:
    """Run the BPF program of a raw tracepoint: there is none."""
