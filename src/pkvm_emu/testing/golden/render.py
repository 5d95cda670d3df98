"""What a system did, as golden text: one line a call, what happened inside it below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.hyp.page_state import Component, state_name
from pkvm_emu.hyp.registrations import registrations
from pkvm_emu.testing.golden.words import Words
from pkvm_emu.tracing.timeline.records import Level, Slice, slices

if TYPE_CHECKING:
    from pkvm_emu.system import System

#: Hypercalls of the kernel's module loader: how many there are says how large the module is, and nothing else.
_LOADER = (
    "alloc_module_va",
    "map_module_page",
    "unmap_module_page",
    "host_share_hyp",
    "host_unshare_hyp",
    "pkvm_create_mappings",
)
_SHOWN = {"hvc", "smc", "abort", "trap", "op", "event", "exception", "guest"}
_INDENT = "  "
_SAME_SHOWN = 4
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: what comes after it is rendered, and what is there already is not said again."""

    records: int = 0
    accesses: int = 0
    said: frozenset[tuple[str, str]] = frozenset()


def mark(system: System) -> Mark:
    """Now."""
    sections = _sections(system, Mark())
    said = frozenset((title, line) for title, lines in sections for line in lines)
    return Mark(len(system.timeline.records), len(system.mmio.log), said)


def render(system: System, since: Mark | None = None) -> str:
    """What a system did.

    Args:
        system: a system whose timeline is recorded.
        since: only what came after this moment; None: everything since the recording began.

    Returns:
        Text that ends with a line feed: calls and what they do in the order in which they happen, then what is registered, the
        accesses to registers of devices, the pages that are not the host's own, and how many instructions the calls took.
    """
    start = since or Mark()
    lines = list(_calls(system, Words(system), start.records))
    # How long things took comes last: a compiler changes it without any change of what is done.
    for title, found in [*_sections(system, start), ("instructions", list(_instructions(system, start.records)))]:
        new = [line for line in found if (title, line) not in start.said]
        if new:
            lines += ["", f"{title}:", *(f"{_INDENT}{line}" for line in new)]
    return "\n".join(lines).strip("\n") + "\n"


def _sections(system: System, since: Mark) -> list[tuple[str, list[str]]]:
    words = Words(system)
    return [
        ("registered", [f"{kind}: {words.address(address)}" for kind, address in registrations(system.hyp)]),
        ("hypercalls", list(_hypercalls(system))),
        ("registers of devices", list(_accesses(system, since.accesses))),
        ("pages", list(_pages(system))),
    ]


def _accesses(system: System, first: int) -> Iterator[str]:
    for access in list(system.mmio.log)[first:]:
        what = "write" if access.is_write else "read"
        times = f" ({access.times} times)" if access.times > 1 else ""
        yield f"{what} {access.size} bytes at {access.address:#x}: {access.value:#x}{times}"


def _calls(system: System, words: Words, first: int) -> Iterator[str]:
    found = slices(list(system.timeline.records)[first:])
    own = _own_pages(system)
    shown = [_is_shown(one, own) for one in found]
    depths, has_more = _depths(found, shown)
    lines: list[tuple[int, str, str]] = []
    for index, one in enumerate(found):
        record = one.begin
        # The host's own faults on memory that is its own say nothing about the module.
        if not shown[index] or (record.category in ("abort", "trap") and not has_more[index]):
            continue
        text = _instant(words, one) if one.is_instant else _call(words, one)
        lines.append((depths[index], f"{record.category} {record.name}" if not has_more[index] else "", text))
    yield from _shortened(lines)


def _instructions(system: System, first: int) -> Iterator[str]:
    """Instructions at EL2 of each hypercall of a module and each SMC, in their order."""
    hypercalls = Words(system).hypercalls
    for one in slices(list(system.timeline.records)[first:]):
        record = one.begin
        is_entry = record.category == "smc" or (record.category == "hvc" and record.name in hypercalls)
        if is_entry and one.instructions and record.level is not Level.EL1:
            yield f"{record.category} {record.name}: {one.instructions}"


def _call(words: Words, one: Slice) -> str:
    record = one.begin
    arguments = record.arguments
    if record.name in ("puts", "putc") and record.category == "op":
        arguments = tuple((name, words.text(value)) for name, value in arguments)
    text = f"{record.category}{' to EL3' if record.level is Level.EL3 else ''} {record.name}"
    text += f"({words.arguments(arguments, 'id', 'esr', 'far', 'syndrome')}){words.results(one.results)}"
    if not one.is_closed:
        text += " (did not return)"
    if record.category == "op" and record.pc:
        text += f"  by {words.place(record.pc, 2)}"
    return text


def _shortened(lines: Sequence[tuple[int, str, str]]) -> Iterator[str]:
    """Indented lines; a long row of the same call is cut."""
    position = 0
    while position < len(lines):
        depth, kind, _ = lines[position]
        end = position + 1
        while end < len(lines) and kind and lines[end][:2] == (depth, kind):
            end += 1
        shown = end - position if end - position <= _SAME_SHOWN else _SAME_SHOWN - 1
        for _, _, line in lines[position : position + shown]:
            yield f"{_INDENT * depth}{line}"
        if end - position > shown:
            yield f"{_INDENT * depth}... {end - position - shown} more of {kind}"
        position = end


def _instant(words: Words, one: Slice) -> str:
    record = one.begin
    if record.category == "page":
        facts = dict(record.arguments)
        pages = f" and {int(facts['pages']) - 1} more" if int(facts["pages"]) > 1 else ""
        return f"page {int(facts['page']):#x}{pages}: {facts['before']} -> {facts['after']}"
    return f"{record.category} {record.name} {words.arguments(record.arguments)}".rstrip()


def _is_shown(one: Slice, own: frozenset[int]) -> bool:
    """Whether it is the module's doing, and no affair of the kernel's module loader."""
    record = one.begin
    if record.level is Level.EL1 or (record.category not in _SHOWN and record.category != "page"):
        return False
    if record.category == "page":
        facts = dict(record.arguments)
        return str(facts.get("by", "")).startswith("EL2") and facts["page"] not in own
    if record.category == "hvc":
        return not record.name.removeprefix("__pkvm_").startswith(_LOADER)
    # An SMC on its way to EL3 is shown there.
    return not (record.category == "smc" and record.level is Level.EL2 and not record.arguments)


def _depths(found: Sequence[Slice], shown: Sequence[bool]) -> tuple[list[int], list[bool]]:
    """How many shown things are around each, whatever their rows; and whether something shown is inside."""
    depths, has_more = [], [False] * len(found)
    around: dict[int, list[int]] = {}
    for index, one in enumerate(found):
        stack = around.setdefault(one.begin.cpu, [])
        while stack and found[stack[-1]].end_order < one.order:
            stack.pop()
        depths.append(len(stack))
        if shown[index]:
            for outer in stack:
                has_more[outer] = True
            if not one.is_instant:
                stack.append(index)
    return depths, has_more


def _own_pages(system: System) -> frozenset[int]:
    """The pages that hold modules: the loader gives them to EL2 one by one."""
    return frozenset(
        pa + offset
        for module in system.modules.values()
        for pa, order in module.blocks.values()
        for offset in range(0, _PAGE << order, _PAGE)
    )


def _hypercalls(system: System) -> Iterator[str]:
    for module in system.modules.values():
        for name, number in module.hypercalls.items():
            yield f"{number}: {module.name}:{name}"


def _pages(system: System) -> Iterator[str]:
    """Pages that ops have changed and that are not the host's own now, in runs."""
    ownership, ram = system.hyp.ownership, system.machine.ram
    touched = sorted(
        {
            pfn * _PAGE
            for event in ownership.events
            if event.origin.startswith("EL2 ") and event.pages <= 1 << 18
            for pfn in range(event.pfn, event.pfn + event.pages)
        }
    )
    own = _own_pages(system)
    run: tuple[int, int, str] | None = None
    for pa in touched:
        owner, host, hyp = ownership.owner_of(pa), ownership.host_state(pa), ownership.hyp_state(pa)
        if pa in own or (owner is Component.HOST and not host and pa in ram):
            continue
        state = f"{owner.name}, host {state_name(host)}, hyp {state_name(hyp)}"
        if run is not None and run[1] == pa and run[2] == state:
            run = (run[0], pa + _PAGE, state)
            continue
        if run is not None:
            yield _run(run)
        run = (pa, pa + _PAGE, state)
    if run is not None:
        yield _run(run)


def _run(run: tuple[int, int, str]) -> str:
    first, end, state = run
    count = (end - first) // _PAGE
    return f"{first:#x}{f' ({count} pages)' if count > 1 else ''}: {state}"
