"""``monitor`` commands: functions found by the decorator :func:`monitor`, with their help."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.debug.packets.registry import Go
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.session import Session

Function = Callable[["Session", list[str]], str | Go]


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: what is typed.
        arguments: what follows, for the help.
        summary: one line.
        function: performs it; its docstring is the long help.
    """

    name: str
    arguments: str
    summary: str
    function: Function


COMMANDS: dict[str, Command] = {}


def monitor(name: str, arguments: str, summary: str) -> Callable[[Function], Function]:
    """Make a function the command ``name``."""

    def register(function: Function) -> Function:
        COMMANDS[name] = Command(name, arguments, summary, function)
        return function

    return register


def perform(session: Session, line: str) -> str | Go:
    """Perform one line; its output.

    Raises:
        UsageError: no such command, or arguments that it cannot take.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"monitor: {error}") from error
    if not words:
        words = ["help"]
    name = words[0]
    matching = [known for known in COMMANDS if known.startswith(name)]
    command = COMMANDS.get(name) or (COMMANDS[matching[0]] if len(matching) == 1 else None)
    if command is None:
        hint = f"did you mean {' or '.join(matching)}?" if matching else "monitor help lists the commands"
        raise UsageError(f"no monitor command {name!r}; {hint}")
    return command.function(session, words[1:])


def number(debugger: Debugger, text: str) -> int:
    """A number (decimal, 0x...), a register (``$x0``) or a symbol (``handler``, ``handler+8``).

    Raises:
        UsageError: it is none of these.
    """
    from pkvm_emu.debug.places import find_symbol
    from pkvm_emu.debug.registers import BY_NAME

    try:
        return int(text, 0)
    except ValueError:
        pass
    base, _, offset = text.partition("+")
    if base.startswith("$") and base[1:] in BY_NAME:
        value = debugger.registers.read(debugger.system.machine.current.index, base[1:])
    else:
        found = find_symbol(debugger, base)
        if not found:
            raise UsageError(f"{text!r} is no number, no register ($x0) and no symbol")
        value = found[-1][1]
    try:
        return value + (int(offset, 0) if offset else 0)
    except ValueError:
        raise UsageError(f"{offset!r} is no offset") from None


def expect(words: list[str], least: int, most: int, usage: str) -> None:
    """Refuse a wrong number of words.

    Raises:
        UsageError: there are too few or too many.
    """
    if not least <= len(words) <= most:
        raise UsageError(f"usage: monitor {usage}")
