"""What is known about the coverage of modules: plain data that goes through JSON, so that processes and machines can be merged."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WORD = 4


class Function(NamedTuple):
    """A function: its name, offset from the beginning of its half, bytes."""

    name: str
    offset: int
    size: int


class LineRow(NamedTuple):
    """From ``offset`` on the code belongs to this line; an empty ``file``: to none."""

    offset: int
    file: str
    line: int


@dataclass(slots=True)
class Half:
    """One half of a module: EL1 or EL2.

    Attributes:
        base: the address of its beginning when it was loaded.
        size: bytes.
        functions: by offset.
        rows: the line table, by offset; empty without debug information.
        blocks: bytes and times executed of each block that ran, by offset.
    """

    base: int
    size: int
    functions: list[Function] = field(default_factory=list)
    rows: list[LineRow] = field(default_factory=list)
    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, offset: int, size: int, count: int) -> None:
        """A block ran ``count`` times; the longest size that was seen counts."""
        known, times = self.blocks.get(offset, (0, 0))
        self.blocks[offset] = (max(known, size), times + count)

    def executed(self) -> dict[int, int]:
        """How often each instruction was executed, by offset."""
        counts: dict[int, int] = {}
        for offset, (size, count) in self.blocks.items():
            for place in range(offset, offset + size, WORD):
                counts[place] = counts.get(place, 0) + count
        return counts

    def line_at(self, offset: int) -> LineRow | None:
        """The source line of an instruction."""
        position = bisect_right(self.rows, offset, key=lambda row: row.offset) - 1
        row = self.rows[position] if position >= 0 else None
        return row if row is not None and row.file else None

    def function_counts(self) -> Iterator[tuple[Function, int, int]]:
        """Each function with its executed and all instructions."""
        places = sorted(self.executed())
        for function in self.functions:
            done = bisect_left(places, function.offset + function.size) - bisect_left(places, function.offset)
            yield function, done, function.size // WORD


@dataclass(slots=True)
class ModuleCoverage:
    """The coverage of one binary.

    Attributes:
        name: the module.
        file: its file, as it was given.
        digest: of its code: two builds are two binaries.
        halves: by exception level.
    """

    name: str
    file: str
    digest: str
    halves: dict[int, Half] = field(default_factory=dict)

    def percent(self, level: int | None = None) -> float | None:
        """Executed instructions of all its functions at a level (None: at both); None where there are none."""
        done = total = 0
        for el, half in self.halves.items():
            if level in (None, el):
                for _, executed, instructions in half.function_counts():
                    done += executed
                    total += instructions
        return 100.0 * done / total if total else None


@dataclass(slots=True)
class Coverage:
    """The coverage of a run; attribute ``modules``: by digest."""

    modules: dict[str, ModuleCoverage] = field(default_factory=dict)

    def merge(self, other: Coverage) -> None:
        """Add what another run executed."""
        for digest, theirs in other.modules.items():
            ours = self.modules.setdefault(digest, ModuleCoverage(theirs.name, theirs.file, digest))
            for el, half in theirs.halves.items():
                mine = ours.halves.setdefault(el, Half(half.base, half.size, half.functions, half.rows))
                for offset, (size, count) in half.blocks.items():
                    mine.add(offset, size, count)

    def in_order(self) -> list[ModuleCoverage]:
        """By name, file and digest."""
        return sorted(self.modules.values(), key=lambda module: (module.name, module.file, module.digest))

    def percent(self) -> float | None:
        """Executed instructions of the EL2 functions of all modules; None where there are none."""
        done = total = 0
        for module in self.modules.values():
            for _, executed, instructions in module.halves[2].function_counts() if 2 in module.halves else ():
                done += executed
                total += instructions
        return 100.0 * done / total if total else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            digest: {
                "name": module.name,
                "file": module.file,
                "halves": {
                    str(el): {
                        "base": half.base,
                        "size": half.size,
                        "functions": [list(function) for function in half.functions],
                        "rows": [list(row) for row in half.rows],
                        "blocks": [[offset, *block] for offset, block in sorted(half.blocks.items())],
                    }
                    for el, half in sorted(module.halves.items())
                },
            }
            for digest, module in sorted(self.modules.items())
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Coverage:
        """What :meth:`as_dict` made.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        found = cls()
        for digest, entry in data.items():
            module = found.modules[digest] = ModuleCoverage(entry["name"], entry["file"], digest)
            for el, half in entry["halves"].items():
                module.halves[int(el)] = Half(
                    half["base"],
                    half["size"],
                    [Function(*function) for function in half["functions"]],
                    [LineRow(*row) for row in half["rows"]],
                    {offset: (size, count) for offset, size, count in half["blocks"]},
                )
        return found
