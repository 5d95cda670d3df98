"""What has to be true: one function an expectation, which returns what is wrong in words, or nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.page_state import state_name
from pkvm_emu.results import describe_value
from pkvm_emu.testing.cases.steps import Outcome, address, number

if TYPE_CHECKING:
    from pkvm_emu.system import System
    from pkvm_emu.testing.oplog import LoggedOp

_REGISTERS = ("x0", "x1", "x2", "x3")


@dataclass(frozen=True, slots=True)
class Since:
    """What a step (or the case) is judged by: only what came after its beginning counts."""

    log: int
    mmio: int
    ops: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to judge."""

    system: System
    outcome: Outcome
    since: Since
    ops: Sequence[LoggedOp]
    trace: str


Check = Callable[[Seen, Any], Iterable[str]]
CHECKS: dict[str, Check] = {}


def check(*names: str) -> Callable[[Check], Check]:
    """Register what judges an expectation of this name."""

    def register(function: Check) -> Check:
        for name in names:
            CHECKS[name] = function
        return function

    return register


def judge(seen: Seen, expect: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The expectations that are not met, by name, and how, in the order of the file."""
    for name, wanted in expect.items():
        try:
            wrong = _number(seen, name, wanted) if name in (*_REGISTERS, "value") else CHECKS[name](seen, wanted)
            for message in wrong:
                yield name, message
        except UsageError as error:
            yield name, f"{name} cannot be judged: {error}"


def _present(seen: Seen, name: str) -> bool:
    return name in seen.outcome.values


def _number(seen: Seen, name: str, wanted: int | str) -> Iterator[str]:
    if not _present(seen, name):
        yield f"{name} is expected, but this step has none"
        return
    found = seen.outcome.values[name]
    if found is None:
        yield f"{name} is expected to be {describe_value(number(wanted))}: {seen.outcome.summary}"
    elif found != number(wanted):
        yield f"{name} is {describe_value(found)}, expected {describe_value(number(wanted))} ({seen.outcome.summary})"


@check("status")
def _status(seen: Seen, wanted: str | int) -> Iterator[str]:
    found = seen.outcome.values.get("status")
    if found != wanted:
        yield f"status is {found}, expected {wanted} ({seen.outcome.summary})"


@check("fault")
def _fault(seen: Seen, wanted: bool | str) -> Iterator[str]:
    if not _present(seen, "fault"):
        yield "fault is expected, but this step makes no access"
        return
    found = seen.outcome.values["fault"]
    if isinstance(wanted, str):
        if found is None or not _search(wanted, found):
            yield f"a fault like {wanted!r} is expected: {seen.outcome.summary}"
    elif wanted != (found is not None):
        yield f"{'a' if wanted else 'no'} fault is expected: {seen.outcome.summary}"


@check("errno")
def _errno(seen: Seen, wanted: str) -> Iterator[str]:
    found = seen.outcome.values.get("errno")
    if found is None or found.lstrip("-") != wanted.lstrip("-"):
        yield f"errno is {found or 'none'}, expected {wanted} ({seen.outcome.summary})"


@check("handled")
def _handled(seen: Seen, wanted: bool) -> Iterator[str]:
    if seen.outcome.values.get("handled") != wanted:
        yield f"the interrupt was {seen.outcome.summary or 'not fired'}"


@check("text")
def _text(seen: Seen, wanted: str) -> Iterator[str]:
    if seen.outcome.text != wanted:
        yield f"the text is {seen.outcome.text!r}, expected {wanted!r}"


@check("matches")
def _matches(seen: Seen, wanted: str | list[str]) -> Iterator[str]:
    yield from _in_order(wanted, seen.outcome.text or "", "the text")


@check("secure")
def _secure(seen: Seen, wanted: bool) -> Iterator[str]:
    if seen.system.is_secure != wanted:
        yield f"the system is {'secure' if seen.system.is_secure else 'insecure'}"


def _new_log(seen: Seen) -> str:
    return "\n".join(seen.system.dmesg.splitlines()[seen.since.log :])


@check("dmesg")
def _dmesg(seen: Seen, wanted: str | list[str]) -> Iterator[str]:
    yield from _in_order(wanted, _new_log(seen), "the kernel log")


@check("dmesg_without")
def _dmesg_without(seen: Seen, unwanted: str | list[str]) -> Iterator[str]:
    for pattern in [unwanted] if isinstance(unwanted, str) else unwanted:
        for line in _new_log(seen).splitlines():
            if _search(pattern, line):
                yield f"{pattern!r} is found in the kernel log: {line.strip()}"
                break


@check("trace")
def _trace(seen: Seen, wanted: str | list[str]) -> Iterator[str]:
    yield from _in_order(wanted, seen.trace, "the hypervisor's trace")


@check("ops")
def _ops(seen: Seen, wanted: Mapping[str, int]) -> Iterator[str]:
    counts = Counter(entry.call.name for entry in seen.ops[seen.since.ops :])
    for name, times in wanted.items():
        if counts[name] != times:
            called = ", ".join(f"{op} {count}" for op, count in sorted(counts.items())) or "none"
            yield f"{name} was called {counts[name]} times, expected {times} (called: {called})"


@check("pages")
def _pages(seen: Seen, wanted: Mapping[str, Any]) -> Iterator[str]:
    for place, page in wanted.items():
        info = seen.system.pages.at(address(seen.system, place))
        found = {"owner": info.owner.name, "host": state_name(info.host_state), "hyp": state_name(info.hyp_state)}
        for name, value in (page if isinstance(page, Mapping) else {"owner": page}).items():
            if found[name] != value:
                past = f"; last: {info.history[-1]}" if info.history else ""
                yield f"page {info.pa:#x}: {name} is {found[name]}, expected {value}{past}"


@check("mmio")
def _mmio(seen: Seen, wanted: list[Mapping[str, Any]]) -> Iterator[str]:
    log = list(seen.system.mmio.log)[seen.since.mmio :]
    position = 0
    for entry in wanted:
        is_write = "write" in entry
        place = address(seen.system, entry["write" if is_write else "read"])
        for index in range(position, len(log)):
            access = log[index]
            if (
                access.is_write == is_write
                and access.address == place
                and ("size" not in entry or access.size == entry["size"])
                and ("value" not in entry or access.value == number(entry["value"]))
            ):
                position = index + 1
                break
        else:
            value = f" of {describe_value(number(entry['value']))}" if "value" in entry else ""
            made = "; ".join(seen.system.mmio.describe(access) for access in log[position:][:4]) or "nothing"
            yield f"no {'write' if is_write else 'read'}{value} at {place:#x} (after what was found: {made})"
            return


def _in_order(wanted: str | list[str], text: str, what: str) -> Iterator[str]:
    position = 0
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        found = _search(pattern, text, position)
        if found is None:
            where = " after what was found before" if position else ""
            shown = text[position:].strip().splitlines()
            yield f"{pattern!r} is not found in {what}{where} ({' | '.join(shown[-3:]) or 'empty'})"
            return
        position = found.end()


def _search(pattern: str, text: str, position: int = 0) -> re.Match[str] | None:
    try:
        return re.compile(pattern, re.MULTILINE).search(text, position)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error
