"""Why a run stopped, and how it is to go on: what run control and a debugger's front end say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class StopKind(StrEnum):
    """Why the guest stopped."""

    #: The steps that were asked for are done.
    STEP = "step"
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"
    #: Somebody asked for it while it ran (Ctrl-C, a new client).
    INTERRUPT = "interrupt"
    #: Modules came or went, or an EL2 half was mapped.
    LIBRARIES = "libraries"
    #: The run ends with an error; the registers are those of the place where it came up.
    ERROR = "error"
    #: Something else that a command asked for (a stage of a hypercall); ``text`` says what.
    EVENT = "event"
    #: Going back came to where the history begins.
    BEGIN = "begin"
    #: Nothing is left to run.
    END = "end"


class Stop(NamedTuple):
    """One stop.

    Attributes:
        kind: why.
        cpu: the CPU that it is about.
        pc: its PC.
        el: its exception level.
        text: one line for people, where there is something to say.
        watch: ``("watch" | "rwatch" | "awatch", va)`` of a watchpoint.
        hardware: the breakpoint was set as a hardware breakpoint.
        error: what ends the run.
    """

    kind: StopKind
    cpu: int
    pc: int
    el: int
    text: str = ""
    watch: tuple[str, int] | None = None
    hardware: bool = False
    error: BaseException | None = None


class Action(NamedTuple):
    """What one CPU is to do: go on, execute one instruction, or step while its PC is in ``[first, end)``.

    Attributes:
        single: step.
        first, end: the range of a range step; equal for one instruction.
    """

    single: bool = False
    first: int = 0
    end: int = 0

    def covers(self, pc: int) -> bool:
        """A range step goes on at ``pc``."""
        return self.first <= pc < self.end


CONTINUE = Action()
STEP = Action(single=True)


class Back(StrEnum):
    """How to go back."""

    #: To before the last instruction; a service, with all guest code that it ran, is one.
    STEP = "step"
    #: To the last breakpoint or watchpoint that was passed.
    CONTINUE = "continue"
    #: To the last writer of something, and again to the present.
    FIND = "find"
    #: To an index.
    GOTO = "goto"


@dataclass(slots=True)
class Request:
    """A wish to go to another point of the history.

    Attributes:
        kind: which.
        index: of ``GOTO``.
        count: how many ``STEP``.
        stops_after: ``CONTINUE`` stops after the access that a watchpoint saw, and not before it: the debugger undoes it itself.
        watched: physical memory (address, bytes) whose last writer ``FIND`` looks for.
        probe: what ``FIND`` looks for the last change of, where it is not memory.
        describe: called where ``FIND`` found it, with the stop and its index (the machine is at that place), or with None; its
            words are the text of the stop at the present.
    """

    kind: Back
    index: int = 0
    count: int = 1
    stops_after: bool = False
    watched: tuple[tuple[int, int], ...] = ()
    probe: Callable[[], object] | None = None
    describe: Callable[[Stop | None, int], str] = lambda stop, index: ""


class Resume(NamedTuple):
    """How to go on: by CPU, and for those that are not named; or back."""

    actions: Mapping[int, Action] = MappingProxyType({})
    default: Action = CONTINUE
    back: Request | None = None

    def of(self, cpu: int) -> Action:
        """What ``cpu`` is to do."""
        return self.actions.get(cpu, self.default)


class Killed(BaseException):
    """The debugger ends the run: it passes through all that is on the stack, to whoever drives it."""
