"""Moves of several steps: source lines, over calls, out of functions, forwards and backwards.

A plan is a generator: it yields how to go on and is sent the stop that this led to. Any stop that is not its own (a breakpoint
of the user's, an error) ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from pkvm_emu.arch.insn import is_bl, is_blr, is_hvc, is_smc, is_svc
from pkvm_emu.debug.breakpoints import Breakpoint, Outcome, regime_of
from pkvm_emu.debug.frames import Frame
from pkvm_emu.debug.stops import STEP, Back, Request, Resume, Stop, StopKind

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.elf.dwarf import SourceLine

Plan = Generator[Resume, Stop, None]


def is_call(word: int) -> bool:
    """An instruction after which execution comes back: a call, with or without pointer authentication, or a system call."""
    signed = word & 0xFEFF_F800 == 0xD63F_0800
    system = is_hvc(word) is not None or is_smc(word) is not None or is_svc(word) is not None
    return is_bl(word) or is_blr(word) is not None or signed or system


class Moves:
    """Makes plans for one debugger."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        self._control = debugger.control
        self._machine = debugger.system.machine

    # Forwards

    def step(self, stop: Stop, count: int, over: bool) -> Plan:
        """Instructions."""
        for _ in range(count):
            stop = yield from self._one(stop, over)

    def step_lines(self, stop: Stop, count: int, over: bool) -> Plan:
        """Source lines; code without lines is passed through."""
        for _ in range(count):
            line, function = self._line(stop), self._function(stop)
            while True:
                stop = yield from self._one(stop, over)
                now = self._line(stop)
                if now is not None and now != line:
                    break
                if line is None and now is None and self._function(stop) != function:
                    break

    def run_to(self, stop: Stop, frame: Frame) -> Plan:
        """To the place of a caller's frame."""
        lowest = self._sp() if regime_of(frame.el) == regime_of(stop.el) else 0
        yield from self._until(regime_of(frame.el), frame.pc, lowest, Resume())

    def _one(self, stop: Stop, over: bool) -> Generator[Resume, Stop, Stop]:
        if over and is_call(self._word(stop.pc)) and stop.pc + 4 not in self._machine.core.services:
            return (yield from self._until(regime_of(stop.el), stop.pc + 4, self._sp(), Resume()))
        return (yield Resume({stop.cpu: STEP}))

    # Backwards

    def step_back(self, stop: Stop, count: int) -> Plan:
        """Instructions."""
        yield Resume(back=Request(Back.STEP, count=count))

    def step_lines_back(self, stop: Stop, count: int, over: bool) -> Plan:
        """To the beginning of the line before."""
        for _ in range(count):
            line = self._line(stop)
            while self._line(stop) in (line, None):
                stop = yield from self._one_back(stop, over)
            line = self._line(stop)
            while self._line(stop) == line:
                index = self._index()
                before, stop = stop, (yield from self._one_back(stop, over))
                if self._sp() > 0 and self._function(stop) != self._function(before):
                    break
            stop = yield Resume(back=Request(Back.GOTO, index=index))

    def finish_back(self, stop: Stop, entry: int) -> Plan:
        """To the call of the function that begins at ``entry``."""
        if stop.pc != entry:
            stop = yield from self._until(regime_of(stop.el), entry, self._sp(), Resume(back=Request(Back.CONTINUE)))
        yield Resume(back=Request(Back.STEP))

    def _one_back(self, stop: Stop, over: bool) -> Generator[Resume, Stop, Stop]:
        call, sp = stop.pc - 4, self._sp()
        is_after_call = over and is_call(self._word(call))
        el = stop.el
        stop = yield Resume(back=Request(Back.STEP))
        if is_after_call and stop.pc != call:
            stop = yield from self._until(regime_of(el), call, sp, Resume(back=Request(Back.CONTINUE)))
        return stop

    # Both

    def _until(self, regime: int, va: int, lowest: int, resume: Resume) -> Generator[Resume, Stop, Stop]:
        """Run until ``va`` is reached with a stack pointer of ``lowest`` at least: not in a call further in."""

        def reached() -> Outcome:
            return self._control.make_stop(StopKind.STEP) if self._sp() >= lowest else False

        on_hit: Callable[[], Outcome] = reached
        point = Breakpoint(regime, va, on_hit, is_internal=True)
        self._control.breakpoints.add(point)
        try:
            return (yield resume)
        finally:
            self._control.breakpoints.remove(point)

    def _sp(self) -> int:
        return self._machine.engine.read("sp")

    def _index(self) -> int:
        history = self._debugger.history
        return history.index if history is not None else 0

    def _word(self, va: int) -> int:
        return self._machine.core.fetch(va) or 0

    def _line(self, stop: Stop) -> SourceLine | None:
        return self._debugger.system.symbols.line(stop.pc, stop.el)

    def _function(self, stop: Stop) -> str:
        symbols = self._debugger.system.symbols
        name = symbols.el2(stop.pc) if stop.el == 2 else symbols.el1(stop.pc)
        return (name or "").partition("+")[0]
