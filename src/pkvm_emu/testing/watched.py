"""The systems of one test: what they are watched for, and what a report says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.testing.oplog import OpLog

if TYPE_CHECKING:
    from pkvm_emu.system import System

_SHOWN_OPS = 60


class _Watched:
    def __init__(self, system: System) -> None:
        self.system = system
        self.ops = OpLog()
        self.events = system.machine.core.events
        system.hyp.ops.observe(self.ops)

    @property
    def name(self) -> str:
        names = ", ".join(self.system.modules) or "no modules"
        return f"{names} on {self.system.generation.name}"


class WatchedSystems:
    """What one test booted."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def add(self, system: System) -> System:
        """Watch a system from now on; the same one twice is watched anew."""
        self._watched = [watched for watched in self._watched if watched.system is not system]
        self._watched.append(_Watched(system))
        return system

    def release(self) -> None:
        """Watch no more (the pool may give the systems to the next test)."""
        for watched in self._watched:
            watched.system.hyp.ops.forget(watched.ops)
        self._watched.clear()

    def figures(self) -> list[tuple[str, object]]:
        """Properties for the JUnit file."""
        ops = sum(len(watched.ops.entries) for watched in self._watched)
        events = sum(watched.system.machine.core.events - watched.events for watched in self._watched)
        names = ",".join(dict.fromkeys(watched.system.generation.name for watched in self._watched))
        return [("pkvm_android", names), ("pkvm_ops", ops), ("pkvm_exceptions_and_calls", events)]

    def sections(self, error: BaseException | None) -> list[tuple[str, str]]:
        """Title and text of what belongs under a failure."""
        found: list[tuple[str, str]] = []
        for watched in self._watched:
            system, name = watched.system, watched.name
            found.append((f"dmesg of {name}", system.dmesg))
            trace = _trace(system)
            if trace:
                found.append((f"hypervisor trace of {name}", trace))
            if watched.ops.entries:
                lines = watched.ops.text(system).splitlines()
                more = [f"... ({len(lines) - _SHOWN_OPS} earlier ops)"] if len(lines) > _SHOWN_OPS else []
                found.append((f"ops of {name}", "\n".join(more + lines[-_SHOWN_OPS:])))
            refused = str(system.explain(3))
            if system.explain(1):
                found.append((f"refusals of {name}", refused))
        panic = _panic_in(error)
        if panic is not None and self._watched:
            system = self._watched[-1].system
            frames = "\n".join(f"  {system.symbols.describe(address, 2)}" for address in panic.state.frames)
            found.append(("EL2 call trace", f"{panic}\n{frames}"))
        return found


def _trace(system: System) -> str:
    from pkvm_emu.kernel.tracing.buffer import HypTrace

    # Reading loads a buffer where there is none, and nothing could be in it.
    if not system.kernel.protected or not system.kernel.part(HypTrace).is_loaded:
        return ""
    try:
        return system.trace_pipe.read()
    except PkvmEmuError:
        # A machine that is off after a panic reads nothing any more.
        return ""


def _panic_in(error: BaseException | None) -> HypPanic | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, HypPanic):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
