"""The trace events of the hypervisor itself: fields and print formats.

Which of them a generation has, and in which order their ids run, is ``generation.tracing.core_events``.
Source: arch/arm64/include/asm/kvm_hypevents.h.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pkvm_emu.abi.generation import Generation


class EventField(NamedTuple):
    """One field of an event: C type, name, bytes, whether the type is signed."""

    type: str
    name: str
    size: int
    is_signed: bool = False


class CoreEvent(NamedTuple):
    """One event.

    Attributes:
        fields: in the order they lie in the buffer, without padding.
        text: the format of its line, given the fields as arguments; None: the format comes with the event.
        print_fmt: what its ``format`` file says.
    """

    fields: tuple[EventField, ...]
    text: str | None
    print_fmt: str


def _event(text: str, *fields: EventField) -> CoreEvent:
    arguments = ", ".join(f"REC->{field.name}" for field in fields)
    return CoreEvent(fields, text, f'"{text}", {arguments}')


def _u64(*names: str) -> tuple[EventField, ...]:
    return tuple(EventField("u64", name, 8) for name in names)


PRINTK = "__hyp_printk"

CORE_EVENTS: dict[str, CoreEvent] = {
    PRINTK: CoreEvent((EventField("u8", "fmt_id", 1), *_u64("a", "b", "c", "d")), None, "Unknown"),
    "host_hcall": _event("id=%u invalid=%u", EventField("unsigned int", "id", 4), EventField("u8", "invalid", 1)),
    "host_mem_abort": _event("esr=0x%llx addr=0x%llx", *_u64("esr", "addr")),
    "host_smc": _event("id=%llu forwarded=%u", *_u64("id"), EventField("u8", "forwarded", 1)),
    "hyp_enter": _event(" "),
    "hyp_exit": _event(" "),
    "iommu_idmap": _event("from=0x%llx to=0x%llx prot=0x%x", *_u64("from", "to"), EventField("int", "prot", 4, True)),
    "iommu_idmap_complete": _event("map=%d", EventField("bool", "map", 1)),
    "psci_mem_protect": _event("count=%llu was=%llu", *_u64("count", "was")),
    "selftest": _event(" "),
    "vcpu_illegal_trap": _event("esr_el2=%llx", *_u64("esr")),
}


def _function_event(text: str, *names: str) -> CoreEvent:
    arguments = ", ".join(f"(void *)REC->{name}" for name in names)
    return CoreEvent(tuple(EventField("unsigned long", name, 8) for name in names), text, f'"{text}", {arguments}')


#: The events of kernels built with CONFIG_PKVM_FTRACE.
CORE_EVENTS["func"] = _function_event("    %ps <- %ps", "ip", "parent")
CORE_EVENTS["func_ret"] = _function_event("%ps", "ip")
FUNCTION_EVENTS = ("func", "func_ret")


def has_functions(generation: Generation) -> bool:
    """Whether its kernel has CONFIG_PKVM_FTRACE."""
    return set(FUNCTION_EVENTS) <= set(generation.tracing.core_events)


def with_functions(generation: Generation) -> Generation:
    """A generation as its kernel is with CONFIG_PKVM_FTRACE: ``func`` and ``func_ret`` are among the events.

    The linker sorts by name, so the ids of most events of the core, and of all module events, are two higher.
    """
    if has_functions(generation):
        return generation
    changed = copy(generation)
    names = tuple(sorted((*generation.tracing.core_events, *FUNCTION_EVENTS)))
    object.__setattr__(changed, "tracing", replace(generation.tracing, core_events=names))
    return changed
