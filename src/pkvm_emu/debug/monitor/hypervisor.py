"""What the hypervisor knows: ``owner``, ``why``, ``ops``, ``hvc``, ``trace``, ``dmesg``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.journey import hypercall_name
from pkvm_emu.debug.monitor.registry import expect, monitor, number
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session

_SHOWN_REFUSALS = 5
_PAGE = 4096


@monitor("owner", "PAGE", "who owns a page, in which state")
def owner(session: Session, words: list[str]) -> str:
    """PAGE is an address in it: physical, or a virtual one that is mapped at EL1 or EL2."""
    expect(words, 1, 1, "owner PAGE")
    return f"{session.debugger.system.pages.at(page_of(session, words[0]))}\n"


@monitor("why", "[PAGE]", "why the last requests were refused, or how a page came into its state")
def why(session: Session, words: list[str]) -> str:
    """Without a page: the last refusals, each with its rule and its caller. With one: the changes of that page
    and who made them."""
    expect(words, 0, 1, "why [PAGE]")
    system = session.debugger.system
    if not words:
        return f"{system.explain(_SHOWN_REFUSALS)}\n"
    from pkvm_emu.hyp.ownership_log import history_of

    pa = page_of(session, words[0])
    events = history_of(system.hyp.ownership.events[:], pa)
    lines = str(system.pages.at(pa)).splitlines()[:2]
    for event in events:
        lines.append(f"  #{event.number} {event.op}: {event.before} -> {event.after}, {_origin(session, event.origin)}")
    if not events:
        lines.append("  nothing changed it since the boot of the hypervisor")
    refusals = [each for each in system.explain(None) if each.page == pa & -_PAGE]
    lines += [str(each) for each in refusals[-_SHOWN_REFUSALS:]]
    return "\n".join(lines) + "\n"


def _origin(session: Session, origin: str) -> str:
    kind, _, address = origin.partition(" ")
    if kind == "EL2" and address.startswith("0x"):
        return f"by {session.debugger.system.symbols.describe(int(address, 16), 2)}"
    return f"by {origin}" if origin else "by nobody known"


def page_of(session: Session, text: str) -> int:
    """The physical address that a word names: itself, or what is mapped there.

    Raises:
        UsageError: it is neither RAM nor mapped to RAM.
    """
    debugger = session.debugger
    address = number(debugger, text)
    ram = debugger.system.machine.ram
    if address in ram:
        return address
    found = debugger.memory.locate(address)
    if found is None or found[1] not in ram:
        raise UsageError(f"{text} is neither RAM nor mapped to RAM")
    return found[1]


@monitor("ops", "[NAME]", "the ops that modules can call, with their addresses")
def ops(session: Session, words: list[str]) -> str:
    """All members of struct pkvm_module_ops of this generation; with NAME those whose name contains it. ``break pkvm_ops_NAME``
    stops at a call.
    """
    expect(words, 0, 1, "ops [NAME]")
    table = session.debugger.system.hyp.ops
    slots = session.debugger.system.generation.ops.by_name
    rows = [
        f"{slots[name].offset:#06x} {address:#x} {name}"
        for name, address in table.stubs.items()
        if not words or words[0] in name
    ]
    return "\n".join(rows or ["no such op"]) + "\n"


@monitor("hvc", "", "the hypercalls that modules registered")
def hypercalls(session: Session, words: list[str]) -> str:
    """Their SMCCC function ids, handlers and modules."""
    expect(words, 0, 0, "hvc")
    system = session.debugger.system
    rows = []
    for module in system.modules.values():
        for name, registered in module.hypercalls.items():
            va = module.el2_symbol(name)
            place = "" if va is None else f" at {system.symbols.describe(va, 2)}"
            rows.append(f"{0xC600_0000 | registered:#x} {hypercall_name(system, registered)} [{module.name}]{place}")
    return "\n".join(rows or ["no module registered a hypercall"]) + "\n"


@monitor("trace", "", "what the hypervisor traced since it was last read")
def trace(session: Session, words: list[str]) -> str:
    """Reads ``trace_pipe``: what is shown is taken out of the buffer. ``hyp_event=`` on the kernel command line turns events on."""
    expect(words, 0, 0, "trace")
    system = session.debugger.system
    if system.machine.core.depth:
        return "".join(_unread(session)) or "nothing was traced\n"
    return system.trace_pipe.read() or "nothing was traced\n"


def _unread(session: Session) -> list[str]:
    """While guest code runs, reading the buffer (which takes hypercalls) has to wait."""
    return ["the trace can be read between two calls only: guest code is running now\n"]


@monitor("dmesg", "[COUNT]", "the end of the kernel log")
def dmesg(session: Session, words: list[str]) -> str:
    """The last COUNT lines (20 by default)."""
    expect(words, 0, 1, "dmesg [COUNT]")
    count = number(session.debugger, words[0]) if words else 20
    lines = session.debugger.system.dmesg.splitlines()
    return "\n".join(lines[-count:] if count > 0 else []) + "\n"
