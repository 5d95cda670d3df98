"""Who changed a page, and why a change was refused: the memory of the ownership model.

Transitions append one small record each to a journalled list; a refusal keeps what was known at that moment. Anything
that costs time (finding the history of a page, words) is done when somebody asks.
"""

from __future__ import annotations

import errno as errno_names
from collections.abc import Iterable
from typing import NamedTuple

from pkvm_emu.hyp.page_state import Component, state_name
from pkvm_emu.machine.pagetable import PAGE_SHIFT

_SHOWN_EVENTS = 10


class PageEvent(NamedTuple):
    """One transition of ``pages`` pages from page frame number ``pfn``.

    Attributes:
        number: position in the log, counted from 0.
        op: name of the operation, as in the module ops table where there is one.
        pfn, pages: the range.
        origin: who asked, in the caller's words (a module and symbol, a hypercall, "boot").
        before, after: what the pages were and became, in words.
    """

    number: int
    op: str
    pfn: int
    pages: int
    origin: str
    before: str
    after: str

    def __str__(self) -> str:
        who = f" by {self.origin}" if self.origin else ""
        return f"#{self.number} {self.op}: {self.before} -> {self.after}{who}"


class Refusal(NamedTuple):
    """An operation that returned an errno, and the page and rule it failed on.

    Attributes:
        op, args: the call.
        errno: the negative errno it returned.
        rule: the rule that was broken, in one sentence.
        page: PA of the first page that broke it; None when no single page did.
        owner: who owned that page.
        host_state, hyp_state: the page's states at that moment (bits of page_state).
        events: how many events the log had, so that the history up to the refusal can be found.
    """

    op: str
    args: tuple[int, ...]
    errno: int
    rule: str
    page: int | None
    owner: Component | None
    host_state: int | None
    hyp_state: int | None
    events: int

    def __str__(self) -> str:
        name = errno_names.errorcode.get(-self.errno, str(self.errno))
        text = f"{self.op}({', '.join(hex(a) for a in self.args)}) = -{name}: {self.rule}"
        if self.page is None or self.owner is None or self.host_state is None or self.hyp_state is None:
            return text
        return (
            f"{text} (page {self.page:#x}: owner {self.owner.name}, host {state_name(self.host_state)}, "
            f"hyp {state_name(self.hyp_state)})"
        )


class PageInfo(NamedTuple):
    """Everything known about one page.

    ``host_entry``/``host_level`` are the host stage-2 entry as it stands, ``hyp_entry`` the EL2 linear-map entry.
    """

    pa: int
    is_memory: bool
    owner: Component
    host_state: int
    hyp_state: int
    refcount: int
    host_entry: int
    host_level: int
    hyp_entry: int
    history: tuple[PageEvent, ...]

    def __str__(self) -> str:
        lines = [
            f"page {self.pa:#x} ({'RAM' if self.is_memory else 'MMIO'}): owner {self.owner.name}, "
            f"host {state_name(self.host_state)}, hyp {state_name(self.hyp_state)}, references {self.refcount}",
            f"  host stage-2 {self.host_entry:#x} at level {self.host_level}, EL2 {self.hyp_entry:#x}",
        ]
        if len(self.history) > _SHOWN_EVENTS:
            lines.append(f"  ({len(self.history) - _SHOWN_EVENTS} earlier events)")
        return "\n".join(lines + [f"  {event}" for event in self.history[-_SHOWN_EVENTS:]])


def history_of(events: Iterable[PageEvent], pa: int) -> tuple[PageEvent, ...]:
    """The events whose range holds the page at ``pa``, oldest first."""
    pfn = pa >> PAGE_SHIFT
    return tuple(event for event in events if event.pfn <= pfn < event.pfn + event.pages)
