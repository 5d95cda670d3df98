"""Hypercalls by which the host loads, reads and empties the trace buffers and switches events.

Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,trace,events}.c.
"""

from __future__ import annotations

from pkvm_emu.hyp.function_trace import FunctionTrace
from pkvm_emu.hyp.heap import HypHeap
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import hypercall
from pkvm_emu.hyp.trace_buffer import TraceBuffers
from pkvm_emu.hyp.trace_events import TraceEvents
from pkvm_emu.hyp.trace_layout import Clock
from pkvm_emu.machine.calling import U16, U32, U64, Bool, Ptr


@hypercall("load_tracing")
def load_tracing(hyp: Hypervisor, descriptor: Ptr, size: U64) -> tuple[int, int, int]:
    """Load trace buffers; x1 = errno, x3 = pages that the heap lacks for it (the host tops it up and calls again).

    Args:
        descriptor: kernel VA of ``struct hyp_trace_desc``; its pages must be the host's alone, the pages that it lists shared.
        size: bytes, whole pages.
    """
    result = hyp.part(TraceBuffers).load(descriptor, size)
    return result, hyp.host_context[2], hyp.part(HypHeap).take_missing()


@hypercall("teardown_tracing")
def teardown_tracing(hyp: Hypervisor) -> int:
    """Unload the trace buffers and what is in them; x1 = 0."""
    hyp.part(TraceBuffers).teardown()
    hyp.part(TraceEvents).configure()
    return 0


@hypercall("enable_tracing")
def enable_tracing(hyp: Hypervisor, on: Bool) -> int:
    """Take events into the loaded buffers, or none; x1 = 0, or -EINVAL where none is loaded."""
    result = hyp.part(TraceBuffers).enable(on)
    hyp.part(TraceEvents).configure()
    return result


@hypercall("reset_tracing")
def reset_tracing(hyp: Hypervisor, cpu: U32) -> int:
    """Empty the buffer of a CPU (android16); x1 = 0, -EINVAL or -ENODEV."""
    return hyp.part(TraceBuffers).reset(cpu)


@hypercall("swap_reader_tracing", "rb_swap_reader_page")
def swap_reader_tracing(hyp: Hypervisor, cpu: U32) -> int:
    """Give the host the oldest page of a CPU's buffer for the one that it has read; x1 = 0, -EINVAL or -ENODEV."""
    return hyp.part(TraceBuffers).swap_reader(cpu)


@hypercall("rb_update_footers")
def rb_update_footers(hyp: Hypervisor, cpu: U32) -> int:
    """Write counts of a CPU's buffer into the footer of the page that the host reads (android14); x1 = 0, -EINVAL or -ENODEV."""
    return hyp.part(TraceBuffers).update_footers(cpu)


@hypercall("update_clock_tracing")
def update_clock_tracing(hyp: Hypervisor, mult: U32, shift: U32, epoch_ns: U64, epoch_cyc: U64) -> int:
    """Set the clock of the time stamps (android16): ``((counter - epoch_cyc) * mult >> shift) + epoch_ns``; x1 = 0."""
    hyp.part(TraceBuffers).clock = Clock(mult, shift, epoch_ns, epoch_cyc)
    return 0


@hypercall("enable_event")
def enable_event(hyp: Hypervisor, event: U16, on: Bool) -> int:
    """Enable or disable an event by id; x1 = 0, or -EINVAL for an id that nobody has."""
    return hyp.part(TraceEvents).switch(event, on)


@hypercall("selftest_event")
def selftest_event(hyp: Hypervisor) -> int:
    """Make the event ``selftest`` (kernels built for testing); x1 = 0."""
    hyp.part(TraceEvents).emit("selftest")
    return 0


@hypercall("sync_ftrace")
def sync_ftrace(hyp: Hypervisor, page: Ptr) -> int:
    """Trace the functions that a page lists (kernel VA; EL1 addresses, bit 0: traced); x1 = errno."""
    return hyp.part(FunctionTrace).sync(page)


@hypercall("disable_ftrace")
def disable_ftrace(hyp: Hypervisor) -> int:
    """Trace no function of patched modules; x1 = 0."""
    hyp.part(FunctionTrace).disable()
    return 0
