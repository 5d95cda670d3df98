"""Going back, for debuggers that have no command for it: ``rsi``, ``rc``, ``goto``, ``history``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.debug.monitor.registry import expect, monitor, number
from pkvm_emu.debug.stops import Back, Request
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.history import History
    from pkvm_emu.debug.session import Session

_MOST_STEPS = 1_000_000


@monitor("rsi", "[COUNT]", "let the next step (si) undo COUNT instructions (1 by default)")
def step_back(session: Session, words: list[str]) -> str:
    """The debugger has to learn that the guest is elsewhere, so it is its own next ``si`` that goes back. gdb has
    ``reverse-stepi``, which needs no monitor command.
    """
    expect(words, 0, 1, "rsi [COUNT]")
    count = number(session.debugger, words[0]) if words else 1
    if not 1 <= count <= _MOST_STEPS:
        raise UsageError(f"rsi takes 1 to {_MOST_STEPS} instructions, not {count}: monitor goto goes further")
    return _arm(session, Request(Back.STEP, count=count), f"goes back {count} instruction{'s' if count > 1 else ''}")


@monitor("rc", "", "let the next step (si) go back to the last breakpoint or watchpoint that was passed")
def go_back(session: Session, words: list[str]) -> str:
    """Or to the beginning of the history. As for ``rsi``, the debugger's next ``si`` does it. gdb has ``reverse-continue``."""
    expect(words, 0, 0, "rc")
    return _arm(session, Request(Back.CONTINUE), "goes back to the last breakpoint or watchpoint")


@monitor("goto", "INDEX|+N|-N", "let the next step (si) go to a point of the history")
def go_to(session: Session, words: list[str]) -> str:
    """INDEX is the number of instructions executed before it, as ``monitor history`` and ``monitor who`` print it. A point that
    lies ahead is run to, without stops.
    """
    expect(words, 1, 1, "goto INDEX|+N|-N")
    history = history_of(session)
    value = number(session.debugger, words[0].lstrip("+-"))
    sign = {"+": 1, "-": -1}.get(words[0][0], 0)
    index = history.index + sign * value if sign else value
    if index < history.first:
        raise UsageError(f"the history begins at instruction {history.first}")
    return _arm(session, Request(Back.GOTO, index=index), f"goes to instruction {index}")


@monitor("history", "", "where in the history the machine is, and how far back it goes")
def show(session: Session, words: list[str]) -> str:
    """Points are counted in executed instructions, since the beginning of the boot."""
    expect(words, 0, 0, "history")
    history = history_of(session)
    states = history.checkpoints
    return (
        f"at instruction {history.index}; the history begins at {history.first}; "
        f"{states} state{'s' if states != 1 else ''} kept\n"
    )


def history_of(session: Session) -> History:
    """The history.

    Raises:
        UsageError: none is kept.
    """
    history = session.debugger.history
    if history is None:
        raise UsageError("no history is kept (--no-reverse)")
    return history


def _arm(session: Session, request: Request, text: str) -> str:
    history_of(session)
    session.armed = request
    return f"the next step (si) {text}\n"
