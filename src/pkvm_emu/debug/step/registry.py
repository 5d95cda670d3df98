"""Commands of the built-in view, found by a decorator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.debug.step.plans import Plan
from pkvm_emu.debug.stops import Resume
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.step.view import View

#: What a command leads to: text, or going on.
Outcome = str | Resume | Plan
Function = Callable[["View", str], Outcome]


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its names (the first is for the help), what follows them, one line of help, and the function."""

    names: tuple[str, ...]
    arguments: str
    summary: str
    function: Function


COMMANDS: dict[str, Command] = {}


def command(names: str, arguments: str, summary: str) -> Callable[[Function], Function]:
    """Make a function the command of all of ``names`` (separated by spaces)."""

    def register(function: Function) -> Function:
        found = Command(tuple(names.split()), arguments, summary, function)
        for name in found.names:
            COMMANDS[name] = found
        return function

    return register


def count_of(text: str, most: int = 100_000_000) -> int:
    """How often; 1 for nothing.

    Raises:
        UsageError: it is no number from 1.
    """
    if not text:
        return 1
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        raise UsageError(f"{text!r} is no count from 1 to {most}")
    return value
