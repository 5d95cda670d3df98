"""The front end of the built-in view: shows each stop, reads commands, says how to go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pkvm_emu.debug.frames import Frame, backtrace
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.step.plans import Moves, Plan
from pkvm_emu.debug.step.points import Points
from pkvm_emu.debug.step.screen import NOTE, Output, Screen
from pkvm_emu.debug.stops import Killed, Request, Resume, Stop, StopKind
from pkvm_emu.errors import PkvmEmuError, UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.machine.core import Service

_SHOWN_SERVICES = 8


class View:
    """One user at one debugger.

    Args:
        debugger: what is debugged, with a history.
        output: where everything is printed.
        commands: the lines that are typed; the end of them ends the session.
        sources: ``(old, new)`` directories of sources.

    Attributes:
        stop: where it stands still.
        frame: the selected frame, by number.
        is_over: nothing is left to run.
        is_reading: a command is being read.
    """

    def __init__(
        self, debugger: Debugger, output: Output, commands: Iterator[str], sources: list[tuple[str, str]] | None = None
    ) -> None:
        self.debugger = debugger
        self.output = output
        self.screen = Screen(debugger, sources or [])
        self.points = Points(debugger)
        self.moves = Moves(debugger)
        self.frame = 0
        self.is_over = False
        self.is_reading = False
        self._commands = commands
        self._plan: Plan | None = None
        self._last = ""
        self._resumed = Resume()
        self._services: deque[tuple[str, tuple[int, ...]]] = deque(maxlen=_SHOWN_SERVICES)
        self._service_count = 0
        core = debugger.system.machine.core
        self._next_service: Callable[[Service, tuple[int, ...]], None] | None = core.on_service
        core.on_service = self._note_service
        self.stop = debugger.control.make_stop(StopKind.STEP)

    # Stops

    def at_stop(self, stop: Stop) -> Resume:
        """Show it and let the user say how to go on (``RunControl.on_stop``).

        Raises:
            Killed: the user leaves.
        """
        self.stop = stop
        if stop.kind is StopKind.LIBRARIES:
            # Modules come and go as they like: what was asked for goes on.
            return self._resumed
        resume = self._continue_plan(stop)
        if resume is not None:
            return resume
        self._show(stop)
        return self._ask()

    def at_end(self, end: Stop) -> None:
        """Nothing is left to run. Returns when the user leaves or there is something to run again.

        Raises:
            Rewind: the user goes back.
        """
        self._drop_plan()
        self.stop, self.is_over = end, True
        flow = self.debugger.flow
        for index, act in enumerate(flow.acts):
            self.output.text(f"{act.name}: {flow.output.get(index, 'done' if index < flow.position else 'failed')}")
        self.output.line([("the run has ended", NOTE)])
        try:
            resume = self._ask()
        except Killed:
            return
        self.is_over = False
        replay = self.debugger.control.replay
        if resume.back is not None and replay is not None:
            replay.begin(resume.back, end)

    def _continue_plan(self, stop: Stop) -> Resume | None:
        if self._plan is None:
            return None
        if stop.kind is StopKind.STEP:
            try:
                return self._remember(self._plan.send(stop))
            except StopIteration:
                self._plan = None
                return None
        self._drop_plan()
        return None

    def _drop_plan(self) -> None:
        if self._plan is not None:
            self._plan.close()
            self._plan = None

    def _remember(self, resume: Resume) -> Resume:
        self._resumed = resume
        return resume

    def _show(self, stop: Stop) -> None:
        self.frame = 0
        point = self.points.at(stop) if stop.kind in (StopKind.BREAKPOINT, StopKind.WATCHPOINT) else None
        hidden = self._service_count - len(self._services)
        if hidden > 0:
            self.output.text(f"  ... {hidden} calls of Python before")
        for name, arguments in self._services:
            self.output.text(f"  {name}({', '.join(f'{value:#x}' for value in arguments)})")
        self._services.clear()
        self._service_count = 0
        text = stop.text
        if stop.kind is StopKind.BEGIN:
            text = "the history begins here"
        elif point is not None:
            text = f"{point.number}: {point.place}{f', {text}' if text else ''}"
        for line in self.screen.stop(stop.cpu, text):
            self.output.line(line)
        if point is not None and point.is_temporary:
            self.points.delete(point.number)

    def _note_service(self, service: Service, arguments: tuple[int, ...]) -> None:
        if self._next_service is not None:
            self._next_service(service, arguments)
        replay = self.debugger.control.replay
        if replay is None or not replay.is_active:
            self._services.append((service.name.removesuffix("()"), arguments))
            self._service_count += 1

    # Commands

    def _ask(self) -> Resume:
        from pkvm_emu.debug.step.commands import perform

        while True:
            self.output.flush()
            self.is_reading = True
            line = next(self._commands, None)
            self.is_reading = False
            if line is None:
                raise Killed
            line = line.strip()
            if line.startswith("#"):
                continue
            if not line:
                line = self._last
            if not line:
                continue
            self._last = line
            try:
                outcome = perform(self, line)
                if isinstance(outcome, str):
                    if outcome:
                        self.output.text(outcome)
                    continue
                if isinstance(outcome, Resume):
                    self._check(outcome)
                    return self._remember(outcome)
                resume = next(outcome)
                self._check(resume)
                self._plan = outcome
                return self._remember(resume)
            except StopIteration:
                continue
            except PkvmEmuError as error:
                self.output.text(str(error))

    def _check(self, resume: Resume) -> None:
        flow = self.debugger.flow
        if self.is_over and resume.back is None and (flow.position >= len(flow.acts) or flow.failure is not None):
            raise UsageError(
                "nothing is left to run: rsi, rc and goto go back, call NAME lets the host make a hypercall, q leaves"
            )
        if resume.back is not None and self.debugger.history is None:
            raise UsageError("no history is kept")

    def back(self, request: Request) -> Resume:
        """Go back."""
        return Resume(back=request)

    # For the commands

    @property
    def frames(self) -> list[Frame]:
        """The backtrace at this stop."""
        return backtrace(self.debugger, self.stop.cpu)

    def session(self) -> Session:
        """What commands of the debug server take."""
        return Session(self.debugger, self.stop)
