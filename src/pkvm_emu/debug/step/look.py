"""The commands that look and change: print, x, info, backtrace, frames, list, set, help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pkvm_emu.debug.registers import BY_NAME, REGISTERS, group_of
from pkvm_emu.debug.step.expression import evaluate
from pkvm_emu.debug.step.registry import COMMANDS, Outcome, command, count_of
from pkvm_emu.debug.step.screen import GENERAL
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.step.view import View

_FORMAT = re.compile(r"^/(\d*)([xduciosatzg]*[bhwg]?[xduciosatz]*)\s*(.*)$", re.DOTALL)
_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_MOST = 4096
_MASK64 = (1 << 64) - 1


@command("p print", "[/x|/d|/t] EXPRESSION", "a value: $x0, symbols, *ADDRESS for 8 bytes of memory, C's operators")
def show(view: View, rest: str) -> Outcome:
    """In hexadecimal and decimal."""
    form, text = "", rest
    if rest.startswith("/"):
        form, _, text = rest[1:].partition(" ")
    value = evaluate(view.debugger, view.stop.cpu, text)
    if form == "x":
        return f"{value:#x}"
    if form == "t":
        return f"{value:#b}"
    signed = value - (1 << 64) if value >> 63 else value
    if form == "d":
        return str(signed)
    name = view.screen.place(value, view.stop.el)
    return f"{value:#x} = {signed}" + ("" if name.startswith(f"EL{view.stop.el} 0x") else f" = {name}")


@command("x", "/[N][x|d|i|s][b|h|w|g] EXPRESSION", "memory, as numbers, instructions or text")
def examine(view: View, rest: str) -> Outcome:
    """``x/4gx $sp``, ``x/8i $pc``, ``x/s ADDRESS``."""
    match = _FORMAT.match(rest) if rest.startswith("/") else None
    count, letters, text = (int(match[1] or 1), match[2], match[3]) if match else (1, "", rest)
    address = evaluate(view.debugger, view.stop.cpu, text)
    if not 1 <= count <= _MOST:
        raise UsageError(f"{count} units: 1 to {_MOST}")
    if "i" in letters:
        level = view.debugger.memory.level_of(address)
        for line in view.screen.instructions(address, count, level, view.stop.pc):
            view.output.line(line)
        return ""
    if "s" in letters:
        data = view.debugger.memory.read(address, 256).partition(b"\0")[0]
        return f"{address:#x}: {data.decode('utf-8', 'backslashreplace')!r}"
    size = next((_SIZES[letter] for letter in letters if letter in _SIZES), 8)
    data = view.debugger.memory.read(address, size * count)
    if not data:
        raise UsageError(f"no memory at {address:#x}")
    per_row = 16 // size
    lines = []
    for at in range(0, len(data) - size + 1, size * per_row):
        units = [data[n : n + size] for n in range(at, min(at + size * per_row, len(data)), size)]
        values = [int.from_bytes(unit, "little", signed="d" in letters) for unit in units]
        texts = [str(value) if "d" in letters else f"{value:0{2 * size}x}" for value in values]
        lines.append(f"{address + at:#x}: {' '.join(texts)}")
    return "\n".join(lines)


@command("set", "$REGISTER = EXPRESSION | *ADDRESS = EXPRESSION", "write; what was recorded after this point is gone")
def write(view: View, rest: str) -> Outcome:
    """A register (system registers by the architecture's names), or 8 bytes of memory."""
    rest = rest.removeprefix("var ").strip()
    target, equals, text = rest.partition("=")
    target = target.strip()
    if not equals or not target:
        raise UsageError("usage: set $REGISTER = EXPRESSION, or set *ADDRESS = EXPRESSION")
    value = evaluate(view.debugger, view.stop.cpu, text)
    if target.startswith("*"):
        address = evaluate(view.debugger, view.stop.cpu, target[1:])
        if not view.debugger.memory.write(address, value.to_bytes(8, "little")):
            raise UsageError(f"no memory at {address:#x}")
        return f"{address:#x} = {value:#x}"
    name = target.removeprefix("$")
    known = next((each for each in (name, name.upper()) if each in BY_NAME), None)
    if known is None:
        raise UsageError(f"no register {target}")
    view.debugger.registers.write(view.stop.cpu, known, value)
    return f"{known} = {view.debugger.registers.read(view.stop.cpu, known):#x}"


@command("bt where backtrace", "", "who called: functions of both levels, across the exception and through Python")
def trace(view: View, rest: str) -> Outcome:
    """By frame records."""
    for number, frame in enumerate(view.frames):
        view.output.line(view.screen.frame(number, frame))
    return ""


@command("up", "[N]", "to the caller's frame")
def up(view: View, rest: str) -> Outcome:
    """For ``list``, ``finish``."""
    return _select(view, view.frame + count_of(rest))


@command("down", "[N]", "to the frame further in")
def down(view: View, rest: str) -> Outcome:
    """As ``up``."""
    return _select(view, view.frame - count_of(rest))


@command("f frame", "[N]", "to a frame by its number")
def select(view: View, rest: str) -> Outcome:
    """As ``bt`` numbers them."""
    return _select(view, evaluate(view.debugger, view.stop.cpu, rest) if rest else view.frame)


def _select(view: View, number: int) -> str:
    frames = view.frames
    if not 0 <= number < len(frames):
        raise UsageError(f"frames are 0 to {len(frames) - 1}")
    view.frame = number
    frame = frames[number]
    view.output.line(view.screen.frame(number, frame))
    for line in view.screen.source(frame.place, frame.el):
        view.output.line(line)
    return ""


@command("l list", "", "the source around the selected frame")
def source(view: View, rest: str) -> Outcome:
    """Files are looked for as the compiler recorded them, and by --source-map."""
    frame = view.frames[view.frame]
    lines = view.screen.source(frame.place, frame.el, around=5)
    if not lines:
        place = view.debugger.system.symbols.line(frame.place, frame.el)
        if place is None:
            raise UsageError("no source is known here: this code has no line numbers")
        raise UsageError(
            f"{place.file}:{place.line}: the file is not there; --source-map OLD=NEW says where sources are"
        )
    for line in lines:
        view.output.line(line)
    return ""


@command("i info", "r [NAME...]|b|all|el1|el2|el3|symbol ADDRESS|line|cpus|history", "registers, breakpoints, and more")
def info(view: View, rest: str) -> Outcome:
    """``i r`` shows the general registers, ``i r HCR_EL2`` one, ``i el2`` the system registers of a level."""
    topic, _, text = rest.partition(" ")
    if topic in ("b", "breakpoints"):
        return view.points.describe()
    if topic in ("el1", "el2", "el3", "all"):
        names = [r.name for r in REGISTERS if topic == "all" or group_of(r) == topic]
        return "\n".join(_register(view, name) for name in names)
    if topic in ("r", "registers"):
        if text:
            return "\n".join(_register(view, name) for name in text.split())
        for line in view.screen.registers(view.stop.cpu, (*GENERAL, "sp", "pc", "cpsr")):
            view.output.line(line)
        return ""
    if topic == "symbol":
        address = evaluate(view.debugger, view.stop.cpu, text)
        return view.screen.place(address, view.debugger.memory.level_of(address))
    if topic == "line":
        return view.screen.place(view.stop.pc, view.stop.el)
    if topic in ("cpus", "threads"):
        return "\n".join(f"CPU {cpu}: {view.debugger.describe_cpu(cpu)}" for cpu in view.debugger.cpus())
    if topic == "history":
        from pkvm_emu.debug import monitor

        return str(monitor.perform(view.session(), "history"))
    raise UsageError(f"info {COMMANDS['info'].arguments}")


def _register(view: View, name: str) -> str:
    from pkvm_emu.arch.sysreg import SYSREGS

    name = name.removeprefix("$")
    known = next((each for each in (name, name.upper()) if each in BY_NAME), None)
    if known is None:
        raise UsageError(f"no register {name}")
    value = view.debugger.registers.read(view.stop.cpu, known)
    found = SYSREGS.get(known)
    return f"{known:<16} {value:#x}" + (f"  {found.doc}" if found is not None and found.doc else "")


@command("h help", "[COMMAND]", "the commands")
def help_(view: View, rest: str) -> Outcome:
    """With a name: its long help."""
    from pkvm_emu.debug import monitor
    from pkvm_emu.debug.step.commands import _NOT_MONITOR

    if rest:
        found = COMMANDS.get(rest)
        if found is not None:
            more = " ".join((found.function.__doc__ or "").split())
            return f"{', '.join(found.names)} {found.arguments}\n  {found.summary}\n  {more}".rstrip()
        if rest in monitor.COMMANDS:
            return str(monitor.perform(view.session(), f"help {rest}"))
        raise UsageError(f"no command {rest!r}")
    rows = [
        (f"{', '.join(each.names)} {each.arguments}".strip(), each.summary) for each in dict.fromkeys(COMMANDS.values())
    ]
    rows += [
        (f"{each.name} {each.arguments}".strip(), each.summary)
        for name, each in monitor.COMMANDS.items()
        if name not in _NOT_MONITOR and name not in COMMANDS
    ]
    lines = []
    for names, summary in rows:
        lines.append(f"{names:<34} {summary}" if len(names) < 34 else f"{names}\n{'':<34} {summary}")
    return "\n".join([*lines, "", "Enter repeats the last command."])
