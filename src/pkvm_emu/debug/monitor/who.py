"""``monitor who``: who wrote something last, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pkvm_emu.debug.last_writer import entry_of_table, last_change_of_owner, last_write
from pkvm_emu.debug.monitor.hypervisor import page_of
from pkvm_emu.debug.monitor.registry import expect, monitor, number
from pkvm_emu.debug.monitor.reverse import history_of
from pkvm_emu.debug.packets.registry import Go
from pkvm_emu.debug.stops import Resume
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.session import Session
    from pkvm_emu.debug.stops import Request

_USAGE = "who ADDRESS [SIZE], who pt ADDRESS [1|2], who s2 PAGE, who owner PAGE"


@monitor("who", "[pt|s2|owner] ADDRESS [SIZE|LEVEL]", "who wrote it last, and at which instruction")
def who(session: Session, words: list[str]) -> Go:
    """``who ADDRESS [SIZE]``: the last write to a word (8 bytes by default). ``who pt ADDRESS``: to the page-table entry of stage 1
    that translates an address. ``who s2 PAGE``: to the host's stage-2 entry of a page. ``who owner PAGE``: the last change of its
    owner. Instructions and Python (ops, hypercalls, kernel functions) are both found, by executing the history again; the machine
    is where it was afterwards.
    """
    expect(words, 1, 3, _USAGE)
    history_of(session)
    kinds: dict[str, Callable[[list[str]], Request]] = {
        "pt": lambda rest: _entry(session, rest, stage=1),
        "s2": lambda rest: _entry(session, rest, stage=2),
        "owner": lambda rest: _owner(session, rest),
    }
    known = kinds.get(words[0])
    request = _word(session, words) if known is None else known(words[1:])
    return Go(Resume(back=request))


def _word(session: Session, words: list[str]) -> Request:
    expect(words, 1, 2, _USAGE)
    debugger = session.debugger
    address = number(debugger, words[0])
    size = number(debugger, words[1]) if len(words) > 1 else 8
    ram = debugger.system.machine.ram
    if not 0 < size <= 4096:
        raise UsageError(f"who looks at 1 to 4096 bytes, not {size}")
    pieces = (
        [(address, size)] if address in ram and address + size <= ram.end else debugger.memory.pieces(address, size)
    )
    if pieces is None:
        raise UsageError(f"{words[0]} is neither RAM nor mapped to RAM")
    return last_write(debugger, pieces, f"{size} bytes at {address:#x}")


def _entry(session: Session, words: list[str], stage: int) -> Request:
    expect(words, 1, 2 if stage == 1 else 1, _USAGE)
    debugger = session.debugger
    address = number(debugger, words[0]) if stage == 1 else page_of(session, words[0])
    level = number(debugger, words[1]) if len(words) > 1 else None
    if level not in (None, 1, 2):
        raise UsageError(f"a level is 1 or 2, not {level}")
    entry, name = entry_of_table(debugger, address, stage, level)
    return last_write(
        debugger, [(entry.address, 8)], f"{name}, {entry.kind} {entry.descriptor:#x} at {entry.address:#x}"
    )


def _owner(session: Session, words: list[str]) -> Request:
    expect(words, 1, 1, _USAGE)
    return last_change_of_owner(session.debugger, page_of(session, words[0]))
