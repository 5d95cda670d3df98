"""Annotations of GitHub Actions: workflow commands on standard output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pkvm_emu.testing.results import CaseResult


def commands(results: Sequence[CaseResult]) -> Iterator[str]:
    """One line for each message of a failed case and each finding of a contract."""
    for result in results:
        if result.is_bad:
            for message in result.messages:
                yield _command("error", result.file, message.line, result.title, message.text)
        for finding in result.findings:
            if finding["level"] == "warning":
                file, line = finding["file"] or result.file, finding["line"] or result.line
                yield _command("warning", file, line, finding["contract"], f"{finding['message']} ({finding['rule']})")


def _command(kind: str, file: str, line: int, title: str, text: str) -> str:
    return f"::{kind} file={_property(file)},line={line},title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
