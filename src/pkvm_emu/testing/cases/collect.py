"""``*.pkvm.toml`` files as pytest collects them: a file, and an item for each case and generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pkvm_emu.errors import PkvmEmuError
from pkvm_emu.testing.cases.model import Case
from pkvm_emu.testing.cases.reader import read_case_file

if TYPE_CHECKING:
    from pkvm_emu.system import System
    from pkvm_emu.testing.recipe import Recipe


class CaseFailed(Exception):
    """What was not as the file says, one line each."""


class CaseItem(pytest.Item):
    """One case on one generation."""

    def __init__(self, *, case: Case, android: str | None, boot: Callable[[pytest.Item, Recipe], System], **rest: Any):
        super().__init__(**rest)
        self.case = case
        self.android = android
        self._boot = boot
        if case.skip is not None:
            self.add_marker(pytest.mark.skip(reason=case.skip))

    def runtest(self) -> None:
        """Boot, do the steps, judge."""
        from pkvm_emu.testing.cases.runner import run_case

        try:
            system = self._boot(self, self.case.recipe(self.path, self.android))
        except PkvmEmuError as error:
            raise CaseFailed(f"{self.path.name}:{self.case.line}: the boot ended with: {error}") from error
        failures = run_case(system, self.path, self.case)
        if failures:
            raise CaseFailed("\n".join(f"{self.path.name}:{failure.line}: {failure.message}" for failure in failures))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The lines of the file that failed; a traceback only for what is no expectation."""
        if isinstance(excinfo.value, (CaseFailed, PkvmEmuError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        """File, line (from 0) and name."""
        return self.path, self.case.line - 1, f"{self.case.name}"


class CaseFileCollector(pytest.File):
    """One ``*.pkvm.toml``."""

    boot: Callable[[pytest.Item, Recipe], System]
    chosen: tuple[str | None, ...] | None

    def collect(self) -> Iterator[pytest.Item]:
        """Its cases, once for each generation that is wanted."""
        try:
            file = read_case_file(self.path)
        except PkvmEmuError as error:
            raise self.CollectError(str(error)) from error
        for case in file.cases:
            for android in self._androids(case):
                name = case.name if android is None else f"{case.name}[{android}]"
                yield CaseItem.from_parent(self, name=name, case=case, android=android, boot=self.boot)

    def _androids(self, case: Case) -> tuple[str | None, ...]:
        if self.chosen is None:
            return case.androids
        if case.androids == (None,):
            return self.chosen
        return tuple(android for android in case.androids if android in self.chosen)
