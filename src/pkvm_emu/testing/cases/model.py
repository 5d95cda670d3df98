"""What a case file says, as objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkvm_emu.testing.recipe import Recipe, boot_options, find_file


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its line, and its table as it is in the file."""

    line: int
    table: Mapping[str, Any]

    @property
    def expect(self) -> Mapping[str, Any]:
        """What has to come of it."""
        expected: Mapping[str, Any] = self.table.get("expect", {})
        return expected


@dataclass(frozen=True, slots=True)
class Case:
    """One case: name, line, generations, steps, and the file's table with the case's own entries over it.

    ``line_of`` gives the line of something in it: ``case.line_of("step", 0, "expect", "x0")``.
    """

    name: str
    line: int
    androids: tuple[str | None, ...]
    steps: tuple[Step, ...]
    table: Mapping[str, Any]
    line_of: Callable[..., int]

    @property
    def expect(self) -> Mapping[str, Any]:
        """What has to be true at its end."""
        expected: Mapping[str, Any] = self.table.get("expect", {})
        return expected

    @property
    def skip(self) -> str | None:
        """Why it is not run."""
        return self.table.get("skip")

    def recipe(self, path: Path, android: str | None) -> Recipe:
        """What it boots on one generation.

        Args:
            path: the file that it is in.
            android: the generation's full name, or None.

        Raises:
            UsageError: a file that is not there.
        """
        table, places = self.table, (path.parent,)
        modules = tuple(find_file(name, places, "module") for name in table.get("modules", ()))
        dtb = find_file(table["dtb"], places, "device tree") if "dtb" in table else None
        return Recipe(
            android=android,
            modules=modules,
            cmdline=table.get("cmdline", ""),
            dtb=dtb,
            machine=table.get("machine", ""),
            ram_mib=table.get("ram_mib", 1024),
            cpus=table.get("cpus", 1),
            options=boot_options(table.get("boot", {}), places),
        )


@dataclass(frozen=True, slots=True)
class CaseFile:
    """One file and its cases."""

    path: Path
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """One expectation that was not met: line in the file, and what was expected and found."""

    line: int
    message: str
