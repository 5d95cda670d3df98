"""JUnit XML: a test suite for each case file, a test case for each case and generation, figures as properties."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from itertools import groupby

from pkvm_emu.testing.results import ERROR, FAILED, SKIPPED, CaseResult

#: What XML 1.0 has no characters for.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(results: Sequence[CaseResult]) -> str:
    """The file's text. There is no time in it: the same results give the same file."""
    root = ElementTree.Element("testsuites")
    for file, group in groupby(results, key=lambda result: result.file):
        cases = list(group)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_text(file),
            tests=str(len(cases)),
            failures=str(sum(case.outcome == FAILED for case in cases)),
            errors=str(sum(case.outcome == ERROR for case in cases)),
            skipped=str(sum(case.outcome == SKIPPED for case in cases)),
        )
        for case in cases:
            _case(suite, case)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, result: CaseResult) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_text(result.file),
        name=_text(result.title),
        file=_text(result.file),
        line=str(result.line),
    )
    properties = ElementTree.SubElement(case, "properties")
    figures = {"android": result.android, **result.figures}
    for name, value in figures.items():
        ElementTree.SubElement(properties, "property", name=f"pkvm_{name}", value=_text(str(value)))
    text = "\n".join(f"{result.file}:{message.line}: {message.text}" for message in result.messages)
    kind = {FAILED: "failure", ERROR: "error", SKIPPED: "skipped"}.get(result.outcome)
    if kind is not None:
        first = result.messages[0].text.splitlines()[0] if result.messages else ""
        ElementTree.SubElement(case, kind, message=_text(first)).text = _text(text)
    if result.sections:
        out = "\n".join(f"--- {title}\n{body}" for title, body in result.sections)
        ElementTree.SubElement(case, "system-out").text = _text(out)


def _text(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
