"""Who wrote a word, a page-table entry or the owner of a page last: requests to the replay, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pkvm_emu.debug.journey import hypercall_name
from pkvm_emu.debug.stops import Back, Request
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.ownership_log import history_of

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.memory import Entry
    from pkvm_emu.debug.stops import Stop


def last_write(debugger: Debugger, pieces: Sequence[tuple[int, int]], what: str) -> Request:
    """A request that finds the last write to physical memory.

    Args:
        pieces: addresses and sizes in bytes.
        what: what that is, for people.
    """
    after = _read(debugger, pieces)

    def describe(stop: Stop | None, index: int) -> str:
        if stop is None:
            return f"{what}: not written since the history begins (instruction {first(debugger)})"
        before = _read(debugger, pieces)
        change = f"{_show(before)} -> {_show(after)}" if len(after) <= 8 else f"{len(after)} bytes"
        return f"{what}: {change}\n  {_by(debugger, stop, index)}"

    return Request(Back.FIND, watched=tuple(pieces), describe=describe)


def last_change_of_owner(debugger: Debugger, pa: int) -> Request:
    """A request that finds the last change of a page's owner or state."""
    ownership = debugger.system.hyp.ownership
    events = history_of(ownership.events, pa)
    page = pa & ~0xFFF

    def changes() -> object:
        return len(history_of(ownership.events, pa))

    def describe(stop: Stop | None, index: int) -> str:
        if not events:
            return f"page {page:#x}: nothing changed it since the boot of the hypervisor"
        last = events[-1]
        text = f"page {page:#x}: {last.before} -> {last.after} by {last.op}"
        if stop is None:
            return f"{text}, before the history begins (instruction {first(debugger)})"
        return f"{text}\n  {_by(debugger, stop, index)}"

    return Request(Back.FIND, probe=changes, describe=describe)


def entry_of_table(debugger: Debugger, address: int, stage: int, level: int | None) -> tuple[Entry, str]:
    """The last entry that a walk reads, and what it is.

    Args:
        address: a VA (stage 1), or a physical address (the host's stage 2).
        stage: 1 or 2.
        level: for stage 1, the exception level; None: the one that maps the address.

    Raises:
        UsageError: the walk reads none.
    """
    memory = debugger.memory
    if stage == 2:
        path, _ = memory.host_path(address)
        name = f"the host's stage-2 entry of {address & ~0xFFF:#x}"
    else:
        if level is None:
            found = memory.locate(address)
            level = found[0] if found is not None else memory.current_regime()
        path, _ = memory.path(address, level)
        name = f"EL{level}'s entry of {address:#x}"
    if not path:
        raise UsageError(f"{name}: the walk reads no table")
    return path[-1], f"{name} (level {path[-1].level})"


def first(debugger: Debugger) -> int:
    """Where the history begins."""
    return debugger.history.first if debugger.history is not None else 0


def _read(debugger: Debugger, pieces: Sequence[tuple[int, int]]) -> bytes:
    ram = debugger.system.machine.ram
    return b"".join(ram.read(pa, size) for pa, size in pieces)


def _show(data: bytes) -> str:
    return f"{int.from_bytes(data, 'little'):#x}"


def _by(debugger: Debugger, stop: Stop, index: int) -> str:
    place = debugger.describe_cpu(stop.cpu)
    how = f", {stop.text}" if stop.text else ""
    return f"at instruction {index}: {place}{how}{_hypercall(debugger, stop)}"


def _hypercall(debugger: Debugger, stop: Stop) -> str:
    """The host's hypercall that the hypervisor answers there."""
    hyp = debugger.system.hyp
    if not hyp.entry("op_host_hcall") <= stop.pc < hyp.entry("op_host_hcall") + 12 or stop.el != 2:
        return ""
    saved = hyp.read(hyp.cpu_memory(stop.cpu).context_va, 8)
    return "" if saved is None else f" for {hypercall_name(debugger.system, int.from_bytes(saved, 'little'))}"
