"""Ops of hypervisor tracing: modules write their events into the buffer of the CPU that they run on.

Source: arch/arm64/kvm/hyp/nvhe/{trace,events,modules}.c.
"""

from __future__ import annotations

from pkvm_emu.hyp.event_ids import EventIds
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.hyp.trace_buffer import TraceBuffers
from pkvm_emu.hyp.trace_events import TraceEvents
from pkvm_emu.machine.calling import U8, U64, Ptr


@op("tracing_reserve_entry")
def tracing_reserve_entry(hyp: Hypervisor, length: U64) -> int:
    """Room for an event of ``length`` bytes in this CPU's buffer; NULL: no buffer is loaded and enabled, the event is dropped."""
    return hyp.part(TraceBuffers).reserve(length)


@op("tracing_commit_entry")
def tracing_commit_entry(hyp: Hypervisor) -> None:
    """Publish the reserved event; without a buffer the hypervisor reads through a NULL pointer and panics."""
    hyp.part(TraceBuffers).commit()


@op("tracing_mod_hyp_printk")
def tracing_mod_hyp_printk(hyp: Hypervisor, fmt_id: U8, a: U64, b: U64, c: U64, d: U64) -> None:
    """Trace a printk by the number of its format; dropped unless the event ``__hyp_printk`` is enabled (android16)."""
    hyp.part(TraceEvents).printk(fmt_id, a, b, c, d)


@op("register_hyp_event_ids")
def register_hyp_event_ids(hyp: Hypervisor, start: Ptr, end: Ptr) -> int:
    """Announce the module's array of 16-byte event ids ``[start, end)``; 0, or -ENOMEM after 16 modules (android15)."""
    return hyp.part(EventIds).announce(start, end)
