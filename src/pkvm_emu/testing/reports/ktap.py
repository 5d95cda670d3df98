"""KTAP, version 1 (Documentation/dev-tools/ktap.rst): a subtest for each case file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from pkvm_emu.testing.results import ERROR, SKIPPED, CaseResult


def write(results: Sequence[CaseResult]) -> str:
    """The file's text."""
    files = [(file, list(group)) for file, group in groupby(results, key=lambda result: result.file)]
    lines = ["KTAP version 1", f"1..{len(files)}"]
    for number, (file, cases) in enumerate(files, 1):
        lines += [f"  KTAP version 1\n  # Subtest: {_name(file)}\n  1..{len(cases)}"]
        for place, case in enumerate(cases, 1):
            for message in case.messages:
                lines += [f"  # {file}:{message.line}: {text}" for text in message.text.splitlines()]
            lines.append(f"  {_line(place, case)}")
        verdict = "not ok" if any(case.is_bad for case in cases) else "ok"
        lines.append(f"{verdict} {number} {_name(file)}")
    return "\n".join(lines) + "\n"


def _line(number: int, case: CaseResult) -> str:
    text = f"{'not ok' if case.is_bad else 'ok'} {number} {_name(case.title)}"
    if case.outcome == SKIPPED:
        reason = case.messages[0].text if case.messages else ""
        return f"{text} # SKIP {reason}".rstrip()
    return f"{text} # ERROR" if case.outcome == ERROR else text


def _name(text: str) -> str:
    # What follows a number sign is a directive.
    return text.replace("#", "_").replace("\n", " ")
