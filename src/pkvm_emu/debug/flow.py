"""What a debugged system is made to do: the boot, then calls, one act after the other.

An act is a Python function that runs guest code; between two acts no guest code is running, so a snapshot can be taken
there. Whoever wants to go back raises :class:`Rewind` from a stop: it unwinds the act that is running, and the flow goes on at
the act that it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pkvm_emu.debug.stops import Killed
from pkvm_emu.errors import PkvmEmuError


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do: its name for people, and what does it; what it returns is printed."""

    name: str
    run: Callable[[], str | None]


class Rewind(BaseException):
    """Leave what is running and go on with act number ``act``.

    Args:
        act: index.
        prepare: called when all frames are unwound, before that act runs (restores a snapshot, sets where to stop).
    """

    def __init__(self, act: int, prepare: Callable[[], None]) -> None:
        super().__init__(act)
        self.act = act
        self.prepare = prepare


class Unwind(BaseException):
    """Leave the runs inside the run ``run`` (``Core.live_runs``), and let it go on in another state.

    Args:
        run: number.
        prepare: called when the frames above are unwound: brings the state back.
    """

    def __init__(self, run: int, prepare: Callable[[], None]) -> None:
        super().__init__(run)
        self.run = run
        self.prepare = prepare


class Flow:
    """The acts of one session.

    Args:
        acts: what is to be done, in order; more may be appended while it runs.

    Attributes:
        position: the act that is running, or the number of acts when all are done.
        before_act: called with its index before each act.
        output: what the acts had to say.
        failure: what ended the last act that failed.
        killed: the debugger ended the run.
    """

    def __init__(self, acts: list[Act]) -> None:
        self.acts = acts
        self.position = 0
        self.before_act: Callable[[int], None] = lambda index: None
        self.output: dict[int, str] = {}
        self.failure: PkvmEmuError | None = None
        self.killed = False

    def run(self, at_end: Callable[[], None]) -> None:
        """Do everything, then call ``at_end`` (which may append acts, or rewind); an act that fails is the last."""
        try:
            while True:
                try:
                    self._run_acts()
                    at_end()
                    if self.position >= len(self.acts) or self.failure is not None:
                        return
                except Rewind as rewind:
                    self.position, self.failure = rewind.act, None
                    rewind.prepare()
        except Killed:
            self.killed = True

    def _run_acts(self) -> None:
        while self.position < len(self.acts):
            self.before_act(self.position)
            try:
                text = self.acts[self.position].run()
            except PkvmEmuError as error:
                self.failure = error
                return
            if text:
                self.output[self.position] = text
            self.position += 1
