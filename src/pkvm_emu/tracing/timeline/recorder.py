"""The list of records, the clock of its time stamps, and what is open in each row.

**Time** is that of the generic counter, as ``dmesg`` and ``trace_pipe`` show it. The counter advances by one step (64 ticks, which
are 1024 ns at 62.5 MHz) for each exception, service and counter read, and stands still in between. So between two steps an
instruction at EL2 counts as one nanosecond as long as there is room, and each record comes at least one nanosecond after the
last. What causes a step (an op, an exception) begins before it: so an op is about one step long.

**Snapshots**: the records are journalled. After a restore the recording is what led to the state that was restored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pkvm_emu.machine.state import State, StateDict, StateList
from pkvm_emu.tracing.timeline.records import Arguments, Level, Phase, Record, Slice, slices

if TYPE_CHECKING:
    from pathlib import Path

    from pkvm_emu.hyp.ownership_log import PageEvent
    from pkvm_emu.hyp.ownership_map import PageKind
    from pkvm_emu.system import System

_STEP_TICKS = 64
_WORD = 4
_NS_PER_SECOND = 1_000_000_000
_ROWS = len(Level) + 1


@dataclass(slots=True)
class Open:
    """Something that has begun and not ended.

    Attributes:
        category: as in its record.
        key: what the end has to match: a service's name, a stack pointer.
        returns_to: for functions, the return address.
        partner: for traps, whether the row of the caller shows it too.
    """

    category: str
    key: Any = None
    returns_to: int = 0
    partner: Level | None = None


class PageChange(NamedTuple):
    """A transition as the ownership map needs it: when, and what the pages are afterwards."""

    time_ns: int
    event: PageEvent
    kind: PageKind


@dataclass(slots=True)
class _Cpu:
    """What is not part of the state: it is empty whenever a snapshot can be taken."""

    rows: list[list[Open]] = field(default_factory=lambda: [[] for _ in range(_ROWS)])
    pending: int = 0
    block: tuple[int, int] = (0, 0)
    in_guest: bool = False
    waiting: list[tuple[int, int]] = field(default_factory=list)


class Timeline(State):
    """The recording of one system; made by :meth:`pkvm_emu.system.System.record_timeline`.

    Args:
        system: the system.

    Attributes:
        records: all records, oldest first.
        page_changes: the transitions of page ownership, those of the boot before the recording began included.
        blocks: bytes of each block of code at EL2 that ran, by address, when blocks are watched.
        last_ns: the newest time stamp.
        since_step: instructions since the counter's last step.
        step: the counter at that step.
        flows: how many arrows there are.
        failure: why the run ended badly, in one line; empty where it did not.
    """

    def __init__(self, system: System) -> None:
        journal = system.machine.journal
        super().__init__(journal)
        self._system = system
        self._core = system.machine.core
        self._hz = system.machine.profile.counter_hz
        self._cpus = [_Cpu() for _ in range(system.machine.profile.cpus)]
        self._runs: list[list[list[int]]] = []
        self.records: StateList[Record] = StateList(journal)
        self.page_changes: StateList[PageChange] = StateList(journal)
        self.blocks: StateDict[int, int] = StateDict(journal)
        self.last_ns = 0
        self.since_step = 0
        self.step = 0
        self.flows = 0
        self.failure = ""
        self.counts_instructions = False

    @property
    def system(self) -> System:
        """The system that is recorded."""
        return self._system

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def slices(self) -> list[Slice]:
        """What the records add up to; see :func:`pkvm_emu.tracing.timeline.records.slices`."""
        return slices(self.records)

    def save(self, path: str | Path, *others: Timeline) -> None:
        """Write the recording as a Chrome trace (JSON), which https://ui.perfetto.dev opens.

        Args:
            path: the file.
            others: recordings of further machines, each a process of its own in the same file.

        Raises:
            UsageError: the file cannot be written.
        """
        from pkvm_emu.tracing.timeline.chrome import save

        save(path, self, *others)

    # For those who listen

    @property
    def cpu(self) -> int:
        """The CPU on the engine."""
        return self._system.machine.current.index

    def count(self, pc: int, instructions: int) -> None:
        """A block of so many instructions is about to run at EL2."""
        cpu = self._cpus[self._system.machine.current.index]
        cpu.pending += instructions
        cpu.block = (pc, instructions)
        if cpu.waiting and cpu.waiting[-1][0] == pc:
            # The block is the caller's already.
            cpu.pending -= instructions
            self.end_down_to(Level.EL2, cpu.waiting.pop()[1])
            cpu.pending += instructions

    def cut_short(self, pc: int) -> None:
        """The last block was left at ``pc``, if that lies inside: what follows in it has not run.

        At its first instruction too: a count ends a run after a block was announced.
        """
        cpu = self._cpus[self._system.machine.current.index]
        start, instructions = cpu.block
        if start <= pc < start + instructions * _WORD:
            cpu.pending -= instructions - (pc - start) // _WORD
            cpu.block = (start, (pc - start) // _WORD)

    def end_at(self, pc: int) -> None:
        """What has just begun at EL2 ends when the CPU comes to ``pc``; at once where blocks are not watched."""
        if not self.counts_instructions:
            self.end(Level.EL2)
        else:
            self._cpus[self._system.machine.current.index].waiting.append((pc, len(self.row(Level.EL2)) - 1))

    def in_guest(self, cpu: int) -> bool:
        """A guest runs on the CPU."""
        return self._cpus[cpu].in_guest

    def set_in_guest(self, cpu: int, inside: bool) -> None:
        """The CPU went to a guest, or came back."""
        self._cpus[cpu].in_guest = inside

    def row(self, level: Level) -> list[Open]:
        """What is open in a row of this CPU, innermost last."""
        return self._cpus[self._system.machine.current.index].rows[level]

    def begin(
        self,
        level: Level,
        name: str,
        opened: Open,
        arguments: Arguments = (),
        *,
        pc: int = 0,
        flow: int = 0,
        before_step: bool = False,
    ) -> None:
        """Something begins.

        Args:
            level, name, opened, arguments: where and what.
            pc: the instruction that caused it. Where a function begins there, so does a block, which is the function's.
            flow: see :class:`Record`.
            before_step: it is what made the counter advance just now.
        """
        self.row(level).append(opened)
        cpu = self._cpus[self._system.machine.current.index]
        own = cpu.block[1] if opened.category == "function" and cpu.block[0] == pc else 0
        cpu.pending -= own
        self._append(Phase.BEGIN, level, name, opened.category, arguments, pc, flow, before_step)
        cpu.pending += own

    def end(self, level: Level, results: Arguments = ()) -> None:
        """The innermost open thing of a row ends."""
        self.row(level).pop()
        self._append(Phase.END, level, "", "", results, 0, 0, False)

    def end_down_to(self, level: Level, depth: int, results: Arguments = ()) -> None:
        """End what is open in a row until ``depth`` things are; ``results`` are the outermost one's."""
        row = self.row(level)
        while len(row) > depth + 1:
            self.end(level)
        if len(row) > depth:
            self.end(level, results)

    def instant(
        self,
        level: Level,
        name: str,
        category: str,
        arguments: Arguments = (),
        *,
        pc: int = 0,
        before_step: bool = False,
    ) -> None:
        """Something happened."""
        self._append(Phase.INSTANT, level, name, category, arguments, pc, 0, before_step)

    def next_flow(self) -> int:
        """The number of a new arrow."""
        self.flows += 1
        return self.flows

    def _append(
        self,
        phase: Phase,
        level: Level,
        name: str,
        category: str,
        arguments: Arguments,
        pc: int,
        flow: int,
        before_step: bool,
    ) -> None:
        index = self._system.machine.current.index
        cpu = self._cpus[index]
        instructions, cpu.pending = cpu.pending, 0
        time = self._now(instructions, before_step)
        self.records.append(Record(phase, time, index, level, name, category, arguments, instructions, pc, flow))

    def _now(self, instructions: int, before_step: bool) -> int:
        ticks, since = self._core.ticks, self.since_step
        room = self.ns(_STEP_TICKS) - 1
        if before_step:
            base = ticks - _STEP_TICKS
            offset = min(since + instructions, room)
            since = 0
        else:
            base = ticks
            since = since + instructions if ticks == self.step else 0
            offset = min(since, room)
        self.step, self.since_step = ticks, since
        self.last_ns = max(self.last_ns + 1, self.ns(base) + offset)
        return self.last_ns

    def ns(self, ticks: int) -> int:
        """Ticks of the generic counter in nanoseconds."""
        return ticks * _NS_PER_SECOND // self._hz

    # Runs

    def run_begins(self) -> None:
        """A run from Python begins: what it leaves open ends with it."""
        self._runs.append([[len(row) for row in cpu.rows] for cpu in self._cpus])

    def run_ends(self) -> None:
        """It has ended, perhaps by an error."""
        for index, (cpu, depths) in enumerate(zip(self._cpus, self._runs.pop(), strict=True)):
            cpu.waiting.clear()
            for level in reversed(Level):
                while len(cpu.rows[level]) > depths[level]:
                    cpu.rows[level].pop()
                    self._close(index, level)
        if not self._runs:
            for cpu in self._cpus:
                cpu.in_guest = False

    def _close(self, cpu: int, level: Level) -> None:
        # The CPU may not be the one on the engine any more: it went off.
        instructions, self._cpus[cpu].pending = self._cpus[cpu].pending, 0
        time = self._now(instructions, False)
        self.records.append(Record(Phase.END, time, cpu, level, instructions=instructions))

    def forget_open(self) -> None:
        """A snapshot was restored: nothing runs."""
        for cpu in self._cpus:
            cpu.rows = [[] for _ in range(_ROWS)]
            cpu.waiting.clear()
            cpu.pending, cpu.in_guest = 0, False
        self._runs.clear()


def named(names: Sequence[str], values: Sequence[int]) -> Arguments:
    """Arguments from names and values; values without a name are called ``x0``, ``x1``, ... by their place."""
    return tuple([(names[i] if i < len(names) else f"x{i}", value) for i, value in enumerate(values)])
