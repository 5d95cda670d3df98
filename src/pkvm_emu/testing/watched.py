"""The systems of one test: what they are watched for, and what a report says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.testing.oplog import OpLog

if TYPE_CHECKING:
    from pkvm_emu.contracts.findings import Finding
    from pkvm_emu.system import System
    from pkvm_emu.testing.golden.render import Mark
    from pkvm_emu.testing.recipe import Recipe

_SHOWN_OPS = 60


class Watched:
    """One system of a test.

    Attributes:
        system: the system.
        ops: the ops that were called since the test began.
        since: the beginning, where behaviour is recorded.
        boot_text: what the boot did, where behaviour is recorded.
        variant: tells boots of the same modules apart: the command line, the device tree, the machine.
    """

    def __init__(self, system: System, recipe: Recipe | None = None) -> None:
        self.system = system
        self.ops = OpLog()
        self.events = system.machine.core.events
        self.executed = _executed(system)
        self.since: Mark | None = None
        self.boot_text: str | None = None
        self.variant = recipe.variant if recipe is not None else ""
        if recipe is not None and dict(recipe.options).get("timeline"):
            from pkvm_emu.testing.golden.render import mark, render

            self.boot_text = render(system)
            self.since = mark(system)
        system.hyp.ops.observe(self.ops)

    @property
    def name(self) -> str:
        """Modules and generation."""
        names = ", ".join(self.system.modules) or "no modules"
        return f"{names} on {self.system.generation.name}"


class WatchedSystems:
    """What one test booted."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []

    @property
    def systems(self) -> list[Watched]:
        """In the order in which the test asked for them."""
        return list(self._watched)

    def add(self, system: System, recipe: Recipe | None = None) -> System:
        """Watch a system from now on; the same one twice is watched anew."""
        self._watched = [watched for watched in self._watched if watched.system is not system]
        self._watched.append(Watched(system, recipe))
        return system

    def release(self) -> None:
        """Watch no more (the pool may give the systems to the next test)."""
        for watched in self._watched:
            watched.system.hyp.ops.forget(watched.ops)
        self._watched.clear()

    def findings(self) -> list[Finding]:
        """Breaches of contracts, those of the boot included."""
        monitors = [watched.system.contracts for watched in self._watched]
        return [finding for monitor in monitors if monitor is not None for finding in monitor.findings]

    def figures(self) -> list[tuple[str, object]]:
        """Properties for the JUnit file."""
        ops = sum(len(watched.ops.entries) for watched in self._watched)
        events = sum(watched.system.machine.core.events - watched.events for watched in self._watched)
        names = ",".join(dict.fromkeys(watched.system.generation.name for watched in self._watched))
        found: list[tuple[str, object]] = [
            ("pkvm_android", names),
            ("pkvm_ops", ops),
            ("pkvm_exceptions_and_calls", events),
        ]
        executed = [(_executed(watched.system), watched.executed) for watched in self._watched]
        if executed and all(now is not None and before is not None for now, before in executed):
            found.append(("pkvm_instructions", sum((now or 0) - (before or 0) for now, before in executed)))
        return found

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
            if system.contracts is not None and system.contracts.findings:
                found.append((f"contracts of {name}", "\n".join(str(one) for one in system.contracts.findings)))
        panic = _panic_in(error)
        if panic is not None and self._watched:
            system = self._watched[-1].system
            frames = "\n".join(f"  {system.symbols.describe(address, 2)}" for address in panic.state.frames)
            found.append(("EL2 call trace", f"{panic}\n{frames}"))
        return found


def _executed(system: System) -> int | None:
    """Instructions at EL2 so far, where something counts them."""
    return system.contracts.executed if system.contracts is not None else None


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
