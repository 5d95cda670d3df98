"""The user's breakpoints and watchpoints, by number; places that are not loaded yet are looked for when modules come."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pkvm_emu.debug.breakpoints import Breakpoint
from pkvm_emu.debug.places import find_symbol, line_addresses
from pkvm_emu.debug.step.expression import evaluate
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.stops import Stop
    from pkvm_emu.debug.watchpoints import Watchpoint

_LINE = re.compile(r"^(?P<file>[^:*]+):(?P<line>\d+)$")


@dataclass(slots=True, eq=False)
class Point:
    """One of the user's.

    Attributes:
        number: from 1.
        place: as it was typed.
        is_temporary: goes when it stops.
        breakpoints: where it is now; several for a name that both levels have.
        watchpoint: where it is one.
    """

    number: int
    place: str
    is_temporary: bool = False
    breakpoints: list[Breakpoint] = field(default_factory=list)
    watchpoint: Watchpoint | None = None


class Points:
    """All of them."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        self._count = 0
        self.points: list[Point] = []
        debugger.control.on_libraries.append(self._resolve_all)

    def add(self, place: str, is_temporary: bool = False) -> Point:
        """A breakpoint at ``SYMBOL``, ``FILE:LINE`` or ``*EXPRESSION``."""
        point = Point(self._next(), place, is_temporary)
        self._resolve(point)
        self.points.append(point)
        return point

    def watch(self, cpu: int, kind: str, text: str, size: int) -> Point:
        """A watchpoint on memory.

        Raises:
            UsageError: it is not RAM.
        """
        address = evaluate(self._debugger, cpu, text)
        pieces = self._debugger.memory.pieces(address, size)
        if pieces is None or not 0 < size <= 4096:
            raise UsageError(f"{text}: {size} bytes at {address:#x} cannot be watched")
        found = self._debugger.control.watchpoints.add(kind, address, size, pieces)
        point = Point(self._next(), f"{kind} {text}", watchpoint=found)
        self.points.append(point)
        return point

    def delete(self, number: int | None) -> None:
        """One, or all.

        Raises:
            UsageError: there is none of this number.
        """
        chosen = [point for point in self.points if number in (None, point.number)]
        if number is not None and not chosen:
            raise UsageError(f"no breakpoint {number}")
        for point in chosen:
            self._clear(point)
            self.points.remove(point)

    def at(self, stop: Stop) -> Point | None:
        """The one that a stop is about."""
        for point in self.points:
            watched = point.watchpoint
            if stop.watch is not None and watched is not None and stop.watch == (watched.kind, watched.va):
                return point
            if stop.watch is None and any(found.va == stop.pc for found in point.breakpoints):
                return point
        return None

    def describe(self) -> str:
        """One line each."""
        if not self.points:
            return "no breakpoints"
        return "\n".join(f"{point.number:<3} {self.where(point)}" for point in self.points)

    def where(self, point: Point) -> str:
        """What a point is and where."""
        kind = "tbreak " if point.is_temporary else "" if point.watchpoint else "break "
        if point.watchpoint is not None:
            return f"{point.place}: {point.watchpoint.size} bytes at {point.watchpoint.va:#x}"
        symbols = self._debugger.system.symbols
        places = []
        for found in point.breakpoints:
            text = symbols.describe(found.va, found.regime)
            places.append(text if text.startswith("EL") else f"EL{found.regime} {text}")
        return f"{kind}{point.place}: {', '.join(places) or 'not loaded yet'}"

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _clear(self, point: Point) -> None:
        control = self._debugger.control
        for found in point.breakpoints:
            control.breakpoints.remove(found)
        point.breakpoints.clear()
        if point.watchpoint is not None:
            control.watchpoints.remove(point.watchpoint.kind, point.watchpoint.va, point.watchpoint.size)

    def _resolve_all(self) -> None:
        for point in self.points:
            if point.watchpoint is None:
                self._resolve(point)

    def _resolve(self, point: Point) -> None:
        self._clear(point)
        breakpoints = self._debugger.control.breakpoints
        point.breakpoints = [breakpoints.add(Breakpoint(*found)) for found in sorted(set(self._addresses(point.place)))]

    def _addresses(self, place: str) -> list[tuple[int, int]]:
        memory = self._debugger.memory
        if place.startswith("*"):
            address = evaluate(self._debugger, self._debugger.system.machine.current.index, place[1:])
            return [(memory.level_of(address), address)]
        match = _LINE.match(place)
        if match is None:
            return find_symbol(self._debugger, place)
        modules = self._debugger.system.modules.values()
        return [found for module in modules for found in line_addresses(module, match["file"], int(match["line"]))]
