"""Reports in the formats that other tools read, one file a format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pkvm_emu.errors import UsageError
from pkvm_emu.testing.results import CaseResult

Writer = Callable[[Sequence[CaseResult]], str]
#: Option, module, what it is for.
FORMATS = (
    ("junit", "JUnit XML, with figures as properties"),
    ("ktap", "KTAP, the kernel's test protocol"),
    ("sarif", "SARIF, for findings of contracts"),
)


def write_report(kind: str, path: Path, results: Sequence[CaseResult]) -> None:
    """Write a report.

    Raises:
        UsageError: the file cannot be written.
    """
    import importlib

    write: Writer = importlib.import_module(f"pkvm_emu.testing.reports.{kind}").write
    try:
        path.write_text(write(results))
    except OSError as error:
        raise UsageError(f"--{kind} {path}: {error.strerror}") from error
