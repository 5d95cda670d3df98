"""Why something was refused: the call, the page and its past, and the rule, in words.

>>> print(system.explain())
host_share_hyp(pfn=0x48000 (page 0x48000000)) = -EPERM
  asked by: driver_hvc+0x54/0x120 [driver] (hyp/el2.c:31)
  rule: the page is not OWNED for the host
  page 0x48000000 then: owner HYP, host NOPAGE, hyp OWNED
  its past: #12 host_donate_hyp, OWNED by HOST -> OWNED by HYP, by driver_hvc+0x30/0x120 [driver] (hyp/el2.c:27)

The records are made by :mod:`pkvm_emu.hyp.refusals` while the system runs; the words are made here, on request.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.abi.prot import prot_name
from pkvm_emu.hyp import registry
from pkvm_emu.hyp.ownership_log import PageEvent, history_of
from pkvm_emu.hyp.page_state import Component, state_name
from pkvm_emu.hyp.refusals import RefusalRecord, Refusals
from pkvm_emu.machine.calling import signature_of

if TYPE_CHECKING:
    from pkvm_emu.system import System

_EL2_ORIGIN = re.compile(r"^EL2 (0x[0-9a-f]+)$")
_SHOWN_EVENTS = 4
_SHOWN_HOLDERS = 4


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a refused call: its name, its value, and the value in words."""

    name: str
    value: int
    text: str

    def __str__(self) -> str:
        return f"{self.name}={self.text}"


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One change of the page before the refusal: who made it, in words with the source line where there is one."""

    event: PageEvent
    who: str

    def __str__(self) -> str:
        event = self.event
        return f"#{event.number} {event.op}, {event.before} -> {event.after}, by {self.who}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One refusal in words.

    Attributes:
        record: the record it is made of.
        arguments: the decoded arguments.
        caller: who asked, with the source line where there is one.
        page: PA of the page to blame, or None.
        owner, host_state, hyp_state: of that page at that moment, in words.
        past: the changes of that page up to then, oldest first.
        holders: who holds the slots that were asked for.
    """

    record: RefusalRecord
    arguments: tuple[Argument, ...]
    caller: str
    page: int | None
    owner: Component | None
    host_state: str | None
    hyp_state: str | None
    past: tuple[PastEvent, ...]
    holders: tuple[str, ...]

    @property
    def rule(self) -> str:
        """The rule that was broken."""
        return self.record.rule

    @property
    def errno(self) -> str:
        """The errno by name (``-EPERM``); ``SMCCC_RET_NOT_SUPPORTED`` for a hypercall that was not answered."""
        return "SMCCC_RET_NOT_SUPPORTED" if self.record.errno is None else errno_name(self.record.errno)

    @property
    def call(self) -> str:
        """The call with its arguments."""
        return f"{self.record.name}({', '.join(str(argument) for argument in self.arguments)})"

    def __str__(self) -> str:
        if self.record.kind == "access":
            lines = [f"the host's access to {self.record.args[0]:#x} was refused with an abort"]
        else:
            lines = [f"{self.call} = {self.errno}"]
        lines += [f"  asked by: {self.caller}", f"  rule: {self.rule}"]
        if self.page is not None and self.owner is not None:
            states = f"host {self.host_state}, hyp {self.hyp_state}"
            lines.append(f"  page {self.page:#x} then: owner {self.owner.name}, {states}")
            lines += self._past_lines()
        if self.holders:
            counts = Counter(self.holders)
            named = [f"{holder}, {count} times" if count > 1 else holder for holder, count in counts.items()]
            more = len(named) - _SHOWN_HOLDERS
            rest = f" and {more} more" if more > 0 else ""
            lines.append(f"  taken by: {'; '.join(named[:_SHOWN_HOLDERS])}{rest}")
        return "\n".join(lines)

    def _past_lines(self) -> list[str]:
        if not self.past:
            return ["  its past: the host's from the start, nothing changed it"]
        lines = [f"  its past: {event}" for event in self.past[-_SHOWN_EVENTS:]]
        if len(self.past) > _SHOWN_EVENTS:
            lines.insert(0, f"  ({len(self.past) - _SHOWN_EVENTS} earlier changes)")
        return lines

    def as_dict(self) -> dict[str, object]:
        """The explanation for programs."""
        return {
            "kind": self.record.kind,
            "name": self.record.name,
            "arguments": {argument.name: argument.value for argument in self.arguments},
            "errno": self.errno,
            "caller": self.caller,
            "rule": self.rule,
            "page": self.page,
            "owner": None if self.owner is None else self.owner.name,
            "host_state": self.host_state,
            "hyp_state": self.hyp_state,
            "past": [str(event) for event in self.past],
            "holders": list(self.holders),
        }


class Explanations(tuple[Explanation, ...]):
    """Some refusals, oldest first; ``str()`` is all of them."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(str(explanation) for explanation in self) or "nothing was refused"


def explain(system: System, last: int | None = 1) -> Explanations:
    """The ``last`` refusals (None: all of them), oldest first."""
    entries = list(system.hyp.part(Refusals).entries)
    chosen = entries if last is None else entries[-last:] if last > 0 else []
    return Explanations(_explain(system, record) for record in chosen)


def _explain(system: System, record: RefusalRecord) -> Explanation:
    blamed = record.ownership
    past: tuple[PastEvent, ...] = ()
    if blamed is not None and blamed.page is not None:
        events = system.hyp.ownership.events[: blamed.events]
        past = tuple(PastEvent(event, _who(system, event.origin)) for event in history_of(events, blamed.page))
    return Explanation(
        record=record,
        arguments=arguments_of(system, record.kind, record.name, record.args),
        caller=_caller(system, record),
        page=None if blamed is None else blamed.page,
        owner=None if blamed is None else blamed.owner,
        host_state=None if blamed is None or blamed.host_state is None else state_name(blamed.host_state),
        hyp_state=None if blamed is None or blamed.hyp_state is None else state_name(blamed.hyp_state),
        past=past,
        holders=tuple(system.symbols.describe(address, 2) for address in record.holders),
    )


def _caller(system: System, record: RefusalRecord) -> str:
    if record.el == 0:
        return f"a user program at {record.pc:#x}"
    where = system.symbols.describe(record.pc, record.el)
    if record.el == 1 and system.kernel.loader.find(record.pc) is None:
        return f"the host ({where})"
    return where


def _who(system: System, origin: str) -> str:
    """The origin of a page event in words: an EL2 address becomes a symbol with its source line."""
    found = _EL2_ORIGIN.match(origin)
    if found is None:
        return {"host": "a hypercall of the host", "boot": "the boot of the hypervisor"}.get(
            origin, origin or "nobody known"
        )
    address = int(found[1], 16)
    where = system.symbols.describe(address, 2)
    if system.symbols.module_at_el2(address) is None:
        return f"a hypercall of the host ({where})"
    return where


def arguments_of(system: System, kind: str, name: str, registers: tuple[int, ...]) -> tuple[Argument, ...]:
    """The arguments of an op or hypercall in words.

    Args:
        system: whose symbols name addresses.
        kind: ``op``, ``hypercall`` or ``access``.
        name: the op or hypercall.
        registers: its raw arguments.
    """
    served = registry.OPS.get(name) if kind == "op" else registry.HYPERCALLS.get(name)
    if served is None:
        names: tuple[str, ...] = (
            ("ipa",) if kind == "access" else tuple(f"x{n if kind == 'op' else n + 1}" for n in range(len(registers)))
        )
        kinds = ("u64",) * len(names)
    else:
        signature = signature_of(served.function)
        names, kinds = signature.names, signature.kinds
    return tuple(
        Argument(argument, value, _value_text(system, kind, argument, passed_as, value))
        for argument, passed_as, value in zip(names, kinds, registers)
    )


def _value_text(system: System, kind: str, name: str, passed_as: str, value: int) -> str:
    if passed_as == "bool":
        return "true" if value & 1 else "false"
    if name in ("pfn", "gfn"):
        return f"{value:#x} ({'page' if name == 'pfn' else 'IPA'} {value << 12:#x})"
    if name in ("pages", "nr_pages", "count"):
        return str(value)
    if name == "prot":
        return prot_name(value)
    symbol = system.symbols.el2(value) if kind == "op" or name == "function" else None
    return f"{value:#x} ({symbol})" if symbol is not None else f"{value:#x}"
