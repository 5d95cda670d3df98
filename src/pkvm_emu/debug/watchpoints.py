"""Watchpoints: hooks on physical memory, so that an access is seen from either level and through any mapping.

A stop comes before the access: PC at the instruction, memory as it was. What Python writes for the guest (an op, a kernel function,
a device) passes no hook; the watched bytes are compared after each service, and the stop comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine

#: The longest access: four vector registers.
_LONGEST = 64
WRITE, READ, ACCESS = "watch", "rwatch", "awatch"


@dataclass(slots=True, eq=False)
class Watchpoint:
    """One watchpoint.

    Attributes:
        kind: ``watch`` (writes), ``rwatch`` (reads) or ``awatch`` (both).
        va: what the debugger asked for; reported as the address of a hit.
        size: bytes.
        pieces: ``(pa, size)`` of what it covers.
        contents: the bytes there.
    """

    kind: str
    va: int
    size: int
    pieces: tuple[tuple[int, int], ...]
    contents: bytes = b""
    hooks: list[int] = field(default_factory=list)


class Watchpoints:
    """All watchpoints of one machine.

    Args:
        machine: whose memory.
        hit: called with a watchpoint that stops; it has to stop the engine.
    """

    def __init__(self, machine: Machine, hit: Callable[[Watchpoint], None]) -> None:
        self._machine = machine
        self._hit = hit
        self.points: list[Watchpoint] = []
        #: Set while the instruction that hit is executed after all.
        self.is_passing = False
        self._undo: tuple[int, bytes] | None = None

    def add(self, kind: str, va: int, size: int, pieces: Sequence[tuple[int, int]]) -> Watchpoint:
        """Watch ``pieces``, the physical memory behind ``size`` bytes at ``va``."""
        point = Watchpoint(kind, va, size, tuple(pieces))
        for pa, length in point.pieces:
            hook = self._machine.engine.hook_memory(
                pa - _LONGEST + 1, pa + length - 1, lambda is_write, at, n: self._accessed(point, is_write, at, n)
            )
            point.hooks.append(hook)
        point.contents = self._read(point)
        self.points.append(point)
        return point

    def remove(self, kind: str, va: int, size: int) -> bool:
        """Watch no more; False where nothing did."""
        for point in self.points:
            if (point.kind, point.va, point.size) == (kind, va, size):
                self._unhook(point)
                self.points.remove(point)
                return True
        return False

    def clear(self) -> None:
        """Remove all."""
        for point in self.points:
            self._unhook(point)
        self.points.clear()

    def settle(self, is_before: bool) -> None:
        """The engine stopped for a hit: where the PC is still ``before`` the access, the write is taken back."""
        undo, self._undo = self._undo, None
        if is_before and undo is not None:
            self._machine.ram.write(*undo)

    def note(self) -> None:
        """What is in memory now is known: only later changes are hits."""
        for point in self.points:
            point.contents = self._read(point)

    def changed(self) -> Watchpoint | None:
        """The first watched memory that was written by something other than an instruction; it is known afterwards."""
        return next((point for point in self.all_changed() if point.kind != READ), None)

    def all_changed(self) -> list[Watchpoint]:
        """All of which that is so, watchpoints for reads too."""
        found = []
        for point in self.points:
            contents = self._read(point)
            if contents != point.contents:
                point.contents = contents
                found.append(point)
        return found

    def _read(self, point: Watchpoint) -> bytes:
        return b"".join(self._machine.ram.read(pa, size) for pa, size in point.pieces)

    def _unhook(self, point: Watchpoint) -> None:
        for hook in point.hooks:
            self._machine.engine.unhook(hook)
        point.hooks.clear()

    def _accessed(self, point: Watchpoint, is_write: bool, pa: int, size: int) -> None:
        if self.is_passing or not any(pa < at + n and at < pa + size for at, n in point.pieces):
            return
        if point.kind != ACCESS and is_write != (point.kind == WRITE):
            return
        if self._undo is None and is_write:
            self._undo = pa, self._machine.ram.read(pa, size)
        self._hit(point)
