"""Breakpoints: code hooks by translation regime and address; no instruction in guest memory is ever replaced.

A breakpoint belongs to EL2 or to EL1 (which EL0 shares): the same number is another address there, and does not stop. Hooks
are put on and taken off only when the run goes on, and only where something changed: a debugger removes and inserts
all of its breakpoints at each stop, and each hook costs the engine its translated code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pkvm_emu.debug.stops import Stop

if TYPE_CHECKING:
    from pkvm_emu.machine.engine import Engine


#: What reaching a breakpoint leads to.
Outcome = bool | Stop | Callable[[], Stop | None]


def regime_of(el: int) -> int:
    """The regime that translates for an exception level: 1 for EL0 and EL1, 2 for EL2."""
    return 2 if el == 2 else 1


@dataclass(slots=True, eq=False)
class Breakpoint:
    """One breakpoint.

    Attributes:
        regime: 1 or 2.
        va: its address there.
        on_hit: called when it is reached: False goes on, True stops, a :class:`Stop` stops with that, and a function is called
            once the engine stands still and returns such a stop, or None to go on. None in its place always stops.
        hardware: how the debugger calls it.
        is_internal: not one of the debugger's.
        hits: how often it was reached.
    """

    regime: int
    va: int
    on_hit: Callable[[], Outcome] | None = None
    hardware: bool = False
    is_internal: bool = False
    hits: int = 0


class Breakpoints:
    """All breakpoints of one engine.

    Args:
        engine: where the hooks go.
        hit: called inside the hook with a breakpoint that stops, and how; it has to stop the engine.
    """

    def __init__(self, engine: Engine, hit: Callable[[Breakpoint, Outcome], None]) -> None:
        self._engine = engine
        self._hit = hit
        self._points: dict[int, list[Breakpoint]] = {}
        self._hooks: dict[int, int] = {}
        self._passed: int | None = None

    def add(self, breakpoint: Breakpoint) -> Breakpoint:
        """Let a breakpoint be in force from the next resume on."""
        self._points.setdefault(breakpoint.va, []).append(breakpoint)
        return breakpoint

    def remove(self, breakpoint: Breakpoint) -> None:
        """Take one back; nothing happens where it is not in force."""
        points = self._points.get(breakpoint.va, [])
        if breakpoint in points:
            points.remove(breakpoint)
        if not points:
            self._points.pop(breakpoint.va, None)

    def find(self, regime: int, va: int, hardware: bool) -> Breakpoint | None:
        """The debugger's breakpoint of this kind at an address."""
        for point in self._points.get(va, ()):
            if point.regime == regime and point.hardware == hardware and not point.is_internal:
                return point
        return None

    def at(self, regime: int, va: int) -> list[Breakpoint]:
        """All breakpoints at an address."""
        return [point for point in self._points.get(va, ()) if point.regime == regime]

    def at_fetch(self, regime: int, va: int) -> Breakpoint | None:
        """The debugger's breakpoint at an address that cannot be executed; None where it is passed."""
        if self._passed == va:
            self._passed = None
            return None
        return next((point for point in self.at(regime, va) if not point.is_internal), None)

    def clear(self) -> None:
        """Take back all that the debugger set."""
        for points in list(self._points.values()):
            for point in list(points):
                if not point.is_internal:
                    self.remove(point)

    def dispose(self) -> None:
        """Take everything away, hooks and all."""
        self._points.clear()
        self.arm(None)

    def arm(self, pc: int | None, only_internal: bool = False) -> None:
        """Put the hooks where they belong; what was in force at ``pc``, where the run goes on, does not stop it again.

        ``only_internal``: those of the debugger have none for now.
        """
        if not self._hooks and not self._points:
            return
        self._passed = pc if pc in self._hooks else None
        wanted = [va for va, at in self._points.items() if not only_internal or any(point.is_internal for point in at)]
        for va in [va for va in self._hooks if va not in wanted]:
            self._engine.unhook(self._hooks.pop(va))
        for va in wanted:
            if va not in self._hooks:
                self._hooks[va] = self._engine.hook_code(va, va, self._reached)

    def _reached(self, pc: int) -> None:
        if self._passed is not None:
            is_passed, self._passed = self._passed == pc, None
            if is_passed:
                return
        regime = regime_of(self._engine.read("pstate") >> 2 & 3)
        for point in list(self._points.get(pc, ())):
            if point.regime == regime:
                point.hits += 1
                outcome = point.on_hit() if point.on_hit is not None else True
                if outcome is not False:
                    self._hit(point, outcome)
                    return
