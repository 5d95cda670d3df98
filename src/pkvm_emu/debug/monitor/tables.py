"""Translation: ``pt``, ``s2``, ``phys``, ``el``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.monitor.hypervisor import page_of
from pkvm_emu.debug.monitor.registry import expect, monitor, number
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.walk import Fault, Translation

if TYPE_CHECKING:
    from pkvm_emu.debug.memory import Entry
    from pkvm_emu.debug.session import Session

_DUMP_WIDTH, _MOST_DUMPED = 16, 4096


@monitor("pt", "ADDRESS [1|2]", "the stage-1 walk of an address, level by level")
def stage1(session: Session, words: list[str]) -> str:
    """Without a level: that of the CPU, then the other one. ADDRESS is a number, a register ($x0) or a symbol.
    The walk reads the tables in guest memory, so it shows what the CPU would find with an empty TLB.
    """
    expect(words, 1, 2, "pt ADDRESS [1|2]")
    memory = session.debugger.memory
    va = number(session.debugger, words[0])
    if len(words) == 2:
        regime = _level(words[1])
    else:
        found = memory.locate(va)
        regime = found[0] if found is not None else memory.current_regime()
    path, end = memory.path(va, regime)
    return _show(f"EL{regime} stage 1 of {va:#x}", path, end)


@monitor("s2", "ADDRESS", "the host's stage-2 walk of a physical address, with its owner")
def stage2(session: Session, words: list[str]) -> str:
    """ADDRESS is an intermediate physical address, which for the host is the physical one, or a virtual one that is mapped. Entries
    that are not valid carry the owner of the page (0: the host, mapped when it first touches the page).
    """
    expect(words, 1, 1, "s2 ADDRESS")
    ipa = page_of(session, words[0])
    path, end = session.debugger.memory.host_path(ipa)
    system = session.debugger.system
    text = _show(f"host stage 2 of {ipa:#x}", path, end)
    enforced = "" if system.hyp.stage2_enabled else "stage 2 is not enabled yet on this CPU\n"
    owner = f"{system.pages.at(ipa)}\n" if ipa in system.machine.ram else ""
    return text + enforced + owner


def _show(title: str, path: list[Entry], end: Translation | Fault) -> str:
    lines = [title]
    for entry in path:
        lines.append(f"  level {entry.level}: {entry.descriptor:#018x} at {entry.address:#x}  {entry.kind}")
    lines.append(f"  = {end}" if isinstance(end, Fault) else f"  = {_leaf(end)}")
    return "\n".join(lines) + "\n"


def _leaf(found: Translation) -> str:
    rights = "".join(
        letter if on else "-" for letter, on in (("r", found.readable), ("w", found.writable), ("x", found.executable))
    )
    return f"PA {found.pa:#x} {rights}, attribute {found.attr_index}"


@monitor("phys", "on|off|ADDRESS [LENGTH]", "read physical memory, or take all addresses of the debugger as physical")
def physical(session: Session, words: list[str]) -> str:
    """``phys on`` lets the debugger's own commands (x, print, set) use physical addresses until ``phys off``.
    ``phys ADDRESS [LENGTH]`` prints memory (64 bytes by default).
    """
    expect(words, 1, 2, "phys on|off|ADDRESS [LENGTH]")
    memory = session.debugger.memory
    if words[0] in ("on", "off"):
        memory.physical = words[0] == "on"
        return f"addresses are {'physical' if memory.physical else 'virtual'}\n"
    address = number(session.debugger, words[0])
    size = number(session.debugger, words[1]) if len(words) == 2 else 64
    ram = session.debugger.system.machine.ram
    if not 0 < size <= _MOST_DUMPED or address not in ram or address + size > ram.end:
        raise UsageError(f"no RAM for {size} bytes at {address:#x} (at most {_MOST_DUMPED})")
    data = ram.read(address, size)
    lines = []
    for offset in range(0, size, _DUMP_WIDTH):
        piece = data[offset : offset + _DUMP_WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{address + offset:#012x}  {piece.hex(' '):<{_DUMP_WIDTH * 3}} {text}")
    return "\n".join(lines) + "\n"


@monitor("el", "[1|2|auto]", "where each CPU is, or the level that addresses belong to")
def level(session: Session, words: list[str]) -> str:
    """Without an argument: the exception level and place of each CPU. ``el 1`` or ``el 2``: addresses (memory, breakpoints that are
    set from now on) are of that level. ``el auto``: of the level that maps them, the CPU's own first.
    """
    expect(words, 0, 1, "el [1|2|auto]")
    debugger = session.debugger
    if words:
        debugger.memory.level = None if words[0] == "auto" else _level(words[0])
    chosen = debugger.memory.level
    lines = [f"CPU {cpu}: {debugger.describe_cpu(cpu)}" for cpu in debugger.cpus()]
    lines.append(f"addresses are of {'the level that maps them' if chosen is None else f'EL{chosen}'}")
    return "\n".join(lines) + "\n"


def _level(text: str) -> int:
    if text not in ("1", "2"):
        raise UsageError(f"a level is 1 or 2, not {text!r}")
    return int(text)
