"""The results of cases, as the reports and the merging of shards take them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pkvm_emu.errors import InputError
from pkvm_emu.testing.coverage.model import Coverage

PASSED, FAILED, ERROR, SKIPPED = "passed", "failed", "error", "skipped"
_FORMAT = "pkvm-emu-results-1"


@dataclass(frozen=True, slots=True)
class Message:
    """One line about a case: where in its file, and what."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case on one generation.

    Attributes:
        file: the case file, relative to where the run began.
        line: the line of the case.
        name: its name.
        android: the generation; empty where the boot did not come so far.
        outcome: ``passed``, ``failed``, ``error`` (it could not be run) or ``skipped``.
        messages: what was wrong, or why it was skipped.
        figures: numbers for reports (``ops``, ``exceptions_and_calls``).
        sections: titles and texts of what the system did, for a failed case.
        findings: breaches of contracts, as :meth:`pkvm_emu.contracts.findings.Finding.as_dict` has them.
    """

    file: str
    line: int
    name: str
    android: str
    outcome: str
    messages: tuple[Message, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    sections: tuple[tuple[str, str], ...] = ()
    findings: tuple[dict[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """``NAME[android16-6.12]``."""
        return f"{self.name}[{self.android}]" if self.android else self.name

    @property
    def is_bad(self) -> bool:
        """It failed, or could not be run."""
        return self.outcome in (FAILED, ERROR)


def exit_code(results: Iterable[CaseResult]) -> int:
    """0: all is well; 1: a case failed; 2: a case could not be run."""
    outcomes = {result.outcome for result in results}
    return 1 if FAILED in outcomes else 2 if ERROR in outcomes else 0


def dump(results: Sequence[CaseResult], coverage: Coverage | None = None) -> str:
    """The results as JSON, to be merged with those of other shards."""
    data: dict[str, Any] = {"format": _FORMAT, "results": [asdict(result) for result in results]}
    if coverage is not None:
        data["coverage"] = coverage.as_dict()
    return json.dumps(data, indent=1) + "\n"


def load(path: Path, coverage: Coverage | None = None) -> list[CaseResult]:
    """Results that :func:`dump` wrote; their coverage is added to ``coverage``.

    Raises:
        InputError: the file is something else.
    """
    try:
        data = json.loads(path.read_text())
        if data["format"] != _FORMAT:
            raise ValueError(f"its format is {data['format']!r}, not {_FORMAT!r}")
        if coverage is not None:
            coverage.merge(Coverage.from_dict(data.get("coverage", {})))
        return [_result(entry) for entry in data["results"]]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no results of pkvm-emu test ({error})") from error


def _result(entry: dict[str, Any]) -> CaseResult:
    messages = tuple(Message(**message) for message in entry.pop("messages"))
    sections = tuple((title, text) for title, text in entry.pop("sections"))
    findings = tuple(entry.pop("findings"))
    return CaseResult(**entry, messages=messages, sections=sections, findings=findings)


def in_order(results: Iterable[CaseResult]) -> list[CaseResult]:
    """By file, line and generation: the same whatever ran when."""
    return sorted(results, key=lambda result: (result.file, result.line, result.name, result.android))
