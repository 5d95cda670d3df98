"""Snapshots of the whole machine: RAM, CPU registers, counters, and the journalled state of every service."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import EmulatorError
from pkvm_emu.machine.memory import RamSnapshot
from pkvm_emu.machine.state import Change, Journal

if TYPE_CHECKING:
    from pkvm_emu.machine.machine import Machine


@dataclass(slots=True, eq=False)
class Snapshot:
    """One saved state; valid for the machine that took it, for as long as that lives."""

    parent: Snapshot | None
    depth: int
    ram: RamSnapshot
    changes: list[Change]
    contexts: list[Any]
    current_cpu: int
    ticks: int
    exceptions: int
    events: int
    executed: int
    instructions: int
    code_epoch: int
    translation_epoch: int
    regime: tuple[int, ...]
    children: list[Snapshot] = field(default_factory=list)


class SnapshotTree:
    """Takes and restores snapshots.

    Restoring the newest base costs what changed since; going to another snapshot costs the difference between the two.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.base: Snapshot | None = None
        self._unwanted: list[Snapshot] = []
        #: Called before a snapshot is taken (True) and after one is restored (False).
        self.on_snapshot: Callable[[bool], None] | None = None

    def take(self, inside: bool = False) -> Snapshot:
        """Save everything; the result is the base from now on.

        Args:
            inside: in the midst of a run, where the engine stands still. The caller sees to it that the snapshot is restored only
                while the Python functions of this moment are on the stack.

        Raises:
            EmulatorError: guest code is running (a service that calls the guest is live).
        """
        machine = self._machine
        if machine.core.depth and not inside:
            raise EmulatorError("a snapshot cannot be taken while a service runs guest code: take it between calls")
        if self.on_snapshot is not None:
            self.on_snapshot(True)
        machine.save_current_cpu()
        base = self.base
        self.base = Snapshot(
            parent=base,
            depth=base.depth + 1 if base else 0,
            ram=machine.ram.snapshot(),
            changes=machine.journal.cut(),
            contexts=[cpu.share() for cpu in machine.cpus],
            current_cpu=machine.current.index,
            ticks=machine.core.ticks,
            exceptions=machine.core.exceptions,
            events=machine.core.events,
            executed=machine.core.watchdog.executed,
            instructions=machine.engine.counter.index if machine.engine.counter is not None else 0,
            code_epoch=machine.core.code_epoch,
            translation_epoch=machine.engine.translation_epoch,
            regime=machine.engine.regime(),
        )
        if base is not None:
            base.children.append(self.base)
        # The private pages went back to the file: what the engine cached of them is still right, by content.
        return self.base

    def drop(self, snapshots: Iterable[Snapshot]) -> None:
        """Forget snapshots that nobody will restore: the next one takes over what each holds.

        One that others branch off, or that is the base, is kept for as long as that is so.
        """
        self._unwanted += snapshots
        kept = []
        # The newest first: with a leaf gone, its parent may be one.
        for snapshot in sorted(self._unwanted, key=lambda each: -each.depth):
            if snapshot is self.base or len(snapshot.children) > 1 or not (snapshot.children or snapshot.parent):
                kept.append(snapshot)
                continue
            parent = snapshot.parent
            if parent is not None:
                parent.children.remove(snapshot)
            for child in snapshot.children:
                child.changes = snapshot.changes + child.changes
                child.parent = parent
                child.ram.take_over(snapshot.ram)
                if parent is not None:
                    parent.children.append(child)
        self._unwanted = kept

    def restore(self, snapshot: Snapshot, inside: bool = False) -> None:
        """Bring everything back to ``snapshot``; ``inside`` as for :meth:`take`."""
        machine = self._machine
        core = machine.core
        if core.depth and not inside:
            raise EmulatorError("a snapshot cannot be restored while a service runs guest code")
        engine = machine.engine
        # Cached translations stay right where nothing touched them: walking anew costs more than all the rest.
        keeps_translations = (
            snapshot is self.base
            and not machine.journal.records
            and engine.translation_epoch == snapshot.translation_epoch
            and len(machine.cpus) == 1
            and engine.regime() == snapshot.regime
        )
        machine.journal.undo_to(0)
        code_changed = core.code_epoch != snapshot.code_epoch
        if snapshot is not self.base:
            self._walk(snapshot)
            code_changed = True
        machine.ram.restore(snapshot.ram)
        for cpu, context in zip(machine.cpus, snapshot.contexts, strict=True):
            cpu.set_context(context)
        machine.current = machine.cpus[snapshot.current_cpu]
        bring_back = engine.restore_registers if keeps_translations else engine.restore_context
        bring_back(snapshot.contexts[snapshot.current_cpu])
        core.ticks, core.exceptions, core.events = snapshot.ticks, snapshot.exceptions, snapshot.events
        core.watchdog.executed = snapshot.executed
        if engine.counter is not None:
            engine.counter.index = snapshot.instructions
        core.forget_progress()
        if not keeps_translations:
            engine.flush_tlb()
            # The same translations as when the snapshot was taken are cached again, or none.
            engine.translation_epoch = snapshot.translation_epoch
        if code_changed:
            core.code_epoch = snapshot.code_epoch
            engine.flush_code()
        if self.on_snapshot is not None:
            self.on_snapshot(False)

    def _walk(self, target: Snapshot) -> None:
        up, down = self.base, target
        forward: list[Snapshot] = []
        while up is not down:
            if up is not None and up.depth >= down.depth:
                Journal.rewind(up.changes)
                up = up.parent
            else:
                forward.append(down)
                if down.parent is None:
                    raise EmulatorError("that snapshot belongs to another machine")
                down = down.parent
        for step in reversed(forward):
            Journal.replay(step.changes)
        self.base = target
