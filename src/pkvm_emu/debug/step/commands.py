"""The commands that run and stop, forwards and backwards; and how a line is performed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pkvm_emu.arch.insn import branch_target, is_bl
from pkvm_emu.debug.packets.registry import Go
from pkvm_emu.debug.step.expression import evaluate
from pkvm_emu.debug.step.registry import COMMANDS, Outcome, command, count_of
from pkvm_emu.debug.stops import Back, Killed, Request, Resume
from pkvm_emu.debug.watchpoints import ACCESS, READ, WRITE
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.step.view import View

_WORD = re.compile(r"^([A-Za-z-]+)(.*)$", re.DOTALL)
_FUNCTION_OFFSET = re.compile(r"\+(0x[0-9a-f]+)")
#: Monitor commands of the debug server that make no sense, or have another form, here.
_NOT_MONITOR = frozenset(("help", "break", "libraries", "rsi", "rc", "goto"))


def perform(view: View, line: str) -> Outcome:
    """Perform one line.

    Raises:
        PkvmEmuError: it cannot be.
        Killed: it was ``quit``.
    """
    from pkvm_emu.debug import monitor
    from pkvm_emu.debug.step import look  # noqa: F401  (registers its commands)

    match = _WORD.match(line)
    if match is None:
        raise UsageError(f"no command {line.split()[0]!r}; help lists the commands")
    name, rest = match[1], match[2].strip()
    found = COMMANDS.get(name)
    if found is not None:
        return found.function(view, rest)
    if name == "monitor":
        line, name = rest, rest.partition(" ")[0]
    if name in monitor.COMMANDS and name not in _NOT_MONITOR:
        answer = monitor.perform(view.session(), line)
        return answer.resume if isinstance(answer, Go) else answer
    raise UsageError(f"no command {name!r}; help lists the commands")


# Forwards


@command("s step", "[N]", "to the next source line, into calls and across HVC and ERET")
def step(view: View, rest: str) -> Outcome:
    """Code without line numbers (the firmware) is passed through."""
    return view.moves.step_lines(view.stop, count_of(rest), over=False)


@command("n next", "[N]", "to the next source line, over calls")
def next_line(view: View, rest: str) -> Outcome:
    """A hypercall counts as a call."""
    return view.moves.step_lines(view.stop, count_of(rest), over=True)


@command("si stepi", "[N]", "one instruction; what Python does is one")
def step_instruction(view: View, rest: str) -> Outcome:
    """Exceptions are entered."""
    return view.moves.step(view.stop, count_of(rest), over=False)


@command("ni nexti", "[N]", "one instruction, over calls")
def next_instruction(view: View, rest: str) -> Outcome:
    """BL, BLR, HVC, SMC and SVC are calls."""
    return view.moves.step(view.stop, count_of(rest), over=True)


@command("c continue", "", "go on to the next breakpoint")
def go_on(view: View, rest: str) -> Outcome:
    """Or to the end."""
    return Resume()


@command("finish", "", "run to the return of the selected frame; out of EL2 where it is the outermost there")
def finish(view: View, rest: str) -> Outcome:
    """With ``up`` a frame further out is left."""
    frames = view.frames
    if view.frame + 1 >= len(frames):
        raise UsageError("the outermost frame returns to Python: c goes on")
    return view.moves.run_to(view.stop, frames[view.frame + 1])


@command("q quit", "", "leave")
def leave(view: View, rest: str) -> Outcome:
    """The run ends where it is."""
    raise Killed


# Backwards


@command("rsi reverse-stepi", "[N]", "undo instructions")
def step_back(view: View, rest: str) -> Outcome:
    """What Python did is one."""
    return view.moves.step_back(view.stop, count_of(rest, 1_000_000))


@command("rs reverse-step", "[N]", "to the beginning of the source line before")
def line_back(view: View, rest: str) -> Outcome:
    """Into calls, from their end."""
    return view.moves.step_lines_back(view.stop, count_of(rest), over=False)


@command("rn reverse-next", "[N]", "the same, over calls")
def next_line_back(view: View, rest: str) -> Outcome:
    """A hypercall counts as a call."""
    return view.moves.step_lines_back(view.stop, count_of(rest), over=True)


@command("rc reverse-continue", "", "back to the last breakpoint or watchpoint that was passed")
def back(view: View, rest: str) -> Outcome:
    """Or to where the history begins."""
    return view.back(Request(Back.CONTINUE))


@command("rfinish reverse-finish", "", "back to the call of this function")
def finish_back(view: View, rest: str) -> Outcome:
    """Of the innermost frame."""
    return view.moves.finish_back(view.stop, _entry(view))


def _entry(view: View) -> int:
    """Where the function begins: what its caller called, or what symbols say."""
    frames, stop = view.frames, view.stop
    if len(frames) > 1 and frames[1].is_call:
        call = frames[1].place
        word = view.debugger.system.machine.core.fetch(call) or 0
        target = branch_target(word, call) if is_bl(word) else None
        if target is not None:
            return target
    symbols = view.debugger.system.symbols
    name = symbols.el2(stop.pc) if stop.el == 2 else symbols.el1(stop.pc)
    if name is None:
        raise UsageError("no function is known here")
    offset = _FUNCTION_OFFSET.search(name)
    return stop.pc - (int(offset[1], 16) if offset else 0)


@command("goto", "INDEX|+N|-N", "to a point of the history, or on to one ahead")
def go_to(view: View, rest: str) -> Outcome:
    """Points are counted in executed instructions, as ``@`` in the head of each stop has it."""
    history = view.debugger.history
    sign = {"+": 1, "-": -1}.get(rest[:1], 0)
    value = evaluate(view.debugger, view.stop.cpu, rest[1:] if sign else rest)
    here = history.index if history is not None else 0
    return view.back(Request(Back.GOTO, index=max(here + sign * value if sign else value, 0)))


# Breakpoints


@command("b break", "SYMBOL|FILE:LINE|*ADDRESS|hvc [ID]", "stop there; hvc: at the three stages of hypercalls")
def breakpoint_(view: View, rest: str) -> Outcome:
    """A name that both levels have stops at both. What is not loaded yet is looked for when modules come."""
    if rest.split()[:1] == ["hvc"]:
        from pkvm_emu.debug import monitor

        answer = monitor.perform(view.session(), f"break {rest}")
        assert isinstance(answer, str)
        return answer
    return _add(view, rest, is_temporary=False)


@command("tb tbreak", "SYMBOL|FILE:LINE|*ADDRESS", "stop there once")
def temporary(view: View, rest: str) -> Outcome:
    """As ``b``."""
    return _add(view, rest, is_temporary=True)


def _add(view: View, place: str, is_temporary: bool) -> str:
    if not place:
        place = f"*{view.stop.pc:#x}"
    point = view.points.add(place, is_temporary)
    return f"{point.number}: {view.points.where(point)}"


@command("watch", "EXPRESSION [SIZE]", "stop before memory is written (8 bytes by default), also by Python")
def watch(view: View, rest: str) -> Outcome:
    """The expression is an address."""
    return _watch(view, WRITE, rest)


@command("rwatch", "EXPRESSION [SIZE]", "stop before it is read")
def watch_reads(view: View, rest: str) -> Outcome:
    """By an instruction."""
    return _watch(view, READ, rest)


@command("awatch", "EXPRESSION [SIZE]", "stop before it is read or written")
def watch_both(view: View, rest: str) -> Outcome:
    """As ``watch`` and ``rwatch``."""
    return _watch(view, ACCESS, rest)


def _watch(view: View, kind: str, rest: str) -> str:
    text, _, size = rest.rpartition(" ")
    if not text or not size.isdigit():
        text, size = rest, "8"
    if not text:
        raise UsageError(f"usage: {kind} EXPRESSION [SIZE]")
    point = view.points.watch(view.stop.cpu, kind, text, int(size))
    return f"{point.number}: {view.points.where(point)}"


@command("d delete", "[N]", "delete a breakpoint, or all")
def delete(view: View, rest: str) -> Outcome:
    """By number."""
    view.points.delete(count_of(rest) if rest else None)
    return ""
