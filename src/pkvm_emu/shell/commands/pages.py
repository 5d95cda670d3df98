"""``pages``: who has which page, as a picture of RAM, as a list, or one page in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.hyp.ownership_map import PageKind, Stretch, stretches
from pkvm_emu.machine.pagetable import PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.shell.command import CommandError, Context, command

if TYPE_CHECKING:
    from pkvm_emu.hyp.ownership_log import PageEvent
    from pkvm_emu.system import System

_COLUMNS = 64
#: A picture is not longer than this.
_MOST_ROWS = 64
_LISTED = 40
_UNITS = {"k": 10, "m": 20, "g": 30}


@command("pages", "[-a] [ADDRESS|START-END|START+SIZE...]", "who has which page: a map, or one page in full")
def pages(context: Context) -> int:
    """Without an argument a map of RAM, a letter for a stretch, and the list of what is not the host's.

    A range is mapped more finely, down to a letter a page; sizes may end in k, M or G. One address shows owner, states, entries and
    history of its page. ``-a`` lists everything.
    """
    found, words = context.options("a")
    system = context.system
    if not words:
        for region in system.hyp.ownership.memory.regions:
            _show_map(context, region.base, region.end, "a" in found)
        _show_outside(context)
        refusal = system.pages.last_refusal
        if refusal is not None:
            context.out(f"last refusal: {refusal}\n")
    for word in words:
        start, end = _range(word)
        if end is None:
            context.out(f"{system.pages.at(start)}\n")
        else:
            _show_map(context, start & -PAGE_SIZE, end + PAGE_SIZE - 1 & -PAGE_SIZE, "a" in found)
    return 0


def _range(word: str) -> tuple[int, int | None]:
    """``0x1000``, ``0x1000-0x3000`` or ``0x1000+8k`` as addresses; no end for one page."""
    for sign in "+-":
        first, found, second = word.partition(sign)
        if found:
            start, last = _number(first), _number(second)
            end = start + last if sign == "+" else last
            if end <= start:
                raise CommandError(f"{word}: the range is empty", 2)
            return start, end
    return _number(word), None


def _number(word: str) -> int:
    unit = _UNITS.get(word[-1:].lower(), 0)
    try:
        value = int(word[:-1] if unit else word, 0) << unit
    except ValueError:
        raise CommandError(f"{word}: not a number", 2) from None
    if not 0 <= value < 1 << 64:
        raise CommandError(f"{word}: not an address", 2)
    return value


def _show_map(context: Context, start: int, end: int, everything: bool) -> None:
    found = stretches(context.system.hyp.ownership, start, end)
    cell = PAGE_SIZE
    while (end - start + cell - 1) // cell > _COLUMNS * _MOST_ROWS or (end - start) // cell > _COLUMNS * 8:
        cell *= 2
    context.out(f"{start:#x}-{end:#x}, {_size(end - start)}; a letter is {_size(cell)}\n")
    for address, row in _rows(found, start, end, cell):
        context.out(f"  {address:#x}  {row}\n")
    kinds = dict.fromkeys([PageKind.HOST, *(stretch.kind for stretch in found)])
    for kind in kinds:
        size = sum(stretch.size for stretch in found if stretch.kind is kind)
        context.out(f"  {kind.letter}  {_size(size):>12}  {kind.text}\n")
    if cell > PAGE_SIZE and len(kinds) > 1:
        context.out("  a small letter: only a part of that stretch\n")
    _list(context, [stretch for stretch in found if stretch.kind is not PageKind.HOST], everything)


def _rows(found: list[Stretch], start: int, end: int, cell: int) -> Iterator[tuple[int, str]]:
    """Address and letters of each row of the picture."""
    letters: list[str] = []
    position = 0
    for address in range(start, end, cell):
        last = min(address + cell, end)
        while position < len(found) and found[position].end <= address:
            position += 1
        sizes: dict[PageKind, int] = {}
        at = position
        while at < len(found) and found[at].start < last:
            part = min(found[at].end, last) - max(found[at].start, address)
            sizes[found[at].kind] = sizes.get(found[at].kind, 0) + part
            at += 1
        letters.append(_letter(sizes, last - address))
    for first in range(0, len(letters), _COLUMNS):
        yield start + first * cell, "".join(letters[first : first + _COLUMNS])


def _letter(sizes: dict[PageKind, int], whole: int) -> str:
    """What stands for a stretch: its kind, or in small the largest part that is not the host's; a blank where there is no RAM."""
    if not sizes:
        return " "
    others = {kind: size for kind, size in sizes.items() if kind is not PageKind.HOST}
    if not others:
        return PageKind.HOST.letter
    kind = max(others, key=lambda kind: others[kind])
    return kind.letter if others[kind] == whole else kind.letter.lower()


def _list(context: Context, found: list[Stretch], everything: bool) -> None:
    shown = found if everything else found[:_LISTED]
    for stretch in shown:
        since = _since(context.system, stretch)
        words = f"{stretch.start:#x}-{stretch.end:#x} {_size(stretch.size):>10}  {stretch.kind.text}"
        context.out(f"  {words}{f' ({since})' if since else ''}\n")
    if len(shown) < len(found):
        context.out(f"  and {len(found) - len(shown)} more: pages -a lists all\n")


def _since(system: System, stretch: Stretch) -> str:
    """The transition that made the first page what it is."""
    pfn = stretch.start >> PAGE_SHIFT
    newest: PageEvent | None = None
    for event in system.hyp.ownership.events:
        if event.pfn <= pfn < event.pfn + event.pages:
            newest = event
    if newest is None:
        return ""
    origin = newest.origin
    if origin.startswith("EL2 0x"):
        origin = system.symbols.describe(int(origin.removeprefix("EL2 "), 16), 2)
    return f"{newest.op} by {origin}" if origin else newest.op


def _show_outside(context: Context) -> None:
    """What is not the host's outside of RAM: registers of devices."""
    ownership = context.system.hyp.ownership
    limit = 1 << ownership.host.table.va_bits
    found: list[Stretch] = []
    start = 0
    for region in (*ownership.memory.regions, None):
        end = region.base if region is not None else limit
        found += stretches(ownership, start, end)
        start = region.end if region is not None else limit
    if found:
        context.out("outside RAM\n")
        _list(context, found, True)


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.3f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size >> 10} KiB"
