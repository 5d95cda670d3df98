"""What a timeline is made of: records in the order they were made, and the slices that they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import NamedTuple

#: A value of a record: a number (addresses too) or words.
Value = int | str
Arguments = tuple[tuple[str, Value], ...]


class Level(IntEnum):
    """The rows of one CPU, from top to bottom."""

    EL1 = 1
    GUEST = 2
    EL2 = 3
    EL3 = 4

    @property
    def title(self) -> str:
        """``EL1``, ``EL1 (guest)``, ``EL2``, ``EL3``."""
        return "EL1 (guest)" if self is Level.GUEST else self.name


class Phase(Enum):
    """What a record says: something begins, the innermost open thing of its row ends, or something happened."""

    BEGIN = "B"
    END = "E"
    INSTANT = "i"


class Record(NamedTuple):
    """One record.

    Attributes:
        phase: begin, end or instant.
        time_ns: by the generic counter, nanoseconds since boot; in one row never the same twice.
        cpu: the CPU.
        level: the row of that CPU.
        name: what; empty for an end.
        category: ``hvc``, ``smc``, ``abort``, ``trap``, ``op``, ``function``, ``symbol``, ``call``, ``guest``, ``exception``,
            ``event``, ``page``, ``snapshot``.
        arguments: names and values; of an end, the results.
        instructions: executed at EL2 by this CPU since its last record.
        pc: the instruction that caused it; 0 where none did.
        flow: number of an arrow that begins here (positive) or ends here (negative); 0 for none.
    """

    phase: Phase
    time_ns: int
    cpu: int
    level: Level
    name: str = ""
    category: str = ""
    arguments: Arguments = ()
    instructions: int = 0
    pc: int = 0
    flow: int = 0


class Slice(NamedTuple):
    """Something that took time (or happened in a moment: ``end_ns`` equals ``start_ns``).

    Attributes:
        begin: the record with which it begins.
        end_ns: when it ended.
        order, end_order: places of its records in the recording.
        depth: how many slices of its row are around it.
        parent: index of the slice around it in the list; -1 for none.
        instructions: those at EL2 that its CPU executed in it, with everything inside.
        results: what the end says.
        is_closed: False for one that had not ended when the recording was looked at.
    """

    begin: Record
    end_ns: int
    order: int
    end_order: int
    depth: int
    parent: int
    instructions: int
    results: Arguments
    is_closed: bool

    @property
    def start_ns(self) -> int:
        """When it began."""
        return self.begin.time_ns

    @property
    def is_instant(self) -> bool:
        """It has no length."""
        return self.begin.phase is Phase.INSTANT


def slices(records: Iterable[Record]) -> list[Slice]:
    """The slices and instants of a recording, in the order in which they began; what is still open ends with the last record."""
    found: list[Slice] = []
    open_rows: dict[tuple[int, Level], list[tuple[int, int]]] = {}
    executed: dict[int, int] = {}
    last_ns = last_order = 0
    for order, record in enumerate(records):
        done = executed[record.cpu] = executed.get(record.cpu, 0) + record.instructions
        row = open_rows.setdefault((record.cpu, record.level), [])
        last_ns, last_order = max(last_ns, record.time_ns), order
        if record.phase is Phase.END:
            index, first = row.pop()
            found[index] = found[index]._replace(
                end_ns=record.time_ns,
                end_order=order,
                instructions=done - first,
                results=record.arguments,
                is_closed=True,
            )
            continue
        parent = row[-1][0] if row else -1
        is_instant = record.phase is Phase.INSTANT
        found.append(Slice(record, record.time_ns, order, order, len(row), parent, 0, (), is_instant))
        if not is_instant:
            row.append((len(found) - 1, done))
    for (cpu, _), row in open_rows.items():
        for index, first in row:
            found[index] = found[index]._replace(
                end_ns=last_ns, end_order=last_order, instructions=executed[cpu] - first
            )
    return found
