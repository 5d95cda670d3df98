"""Reports that other tools read."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pkvm_emu.contracts.rules import CONTRACTS
from pkvm_emu.errors import UsageError
from pkvm_emu.testing.reports import junit, ktap, sarif, write_report
from pkvm_emu.testing.reports.github import commands
from pkvm_emu.testing.results import ERROR, FAILED, PASSED, SKIPPED, CaseResult, Message, dump, load

FINDING = {
    "contract": "double-fetch",
    "level": "warning",
    "message": "8 bytes are read again",
    "entry": "hypercall take [vendor]",
    "where": "take+0x50/0x80 [vendor] (hyp/el2.c:31)",
    "file": "hyp/el2.c",
    "line": 31,
    "rule": "once",
}
RESULTS = [
    CaseResult("a.pkvm.toml", 4, "good", "android16-6.12", PASSED, figures={"ops": 3}, findings=(FINDING,)),
    CaseResult(
        "a.pkvm.toml",
        9,
        "bad <&> \x01",
        "android16-6.12",
        FAILED,
        (Message(11, "x1 is 0x1, expected 0x2\nmore: 100%"),),
        sections=(("dmesg", "[0] hello"),),
        findings=(FINDING,),
    ),
    CaseResult("a.pkvm.toml", 20, "later # x", "", SKIPPED, (Message(20, "not yet"),)),
    CaseResult("b.pkvm.toml", 1, "b.pkvm.toml", "", ERROR, (Message(1, "no"),)),
]


def test_junit_counts_and_has_figures_as_properties() -> None:
    root = ElementTree.fromstring(junit.write(RESULTS))
    first, second = root.findall("testsuite")
    assert (first.get("tests"), first.get("failures"), first.get("skipped"), first.get("errors")) == (
        "3",
        "1",
        "1",
        "0",
    )
    assert second.get("errors") == "1"
    good, bad, later = first.findall("testcase")
    properties = {entry.get("name"): entry.get("value") for entry in good.iter("property")}
    assert properties == {"pkvm_android": "android16-6.12", "pkvm_ops": "3"}
    failure = bad.find("failure")
    assert failure is not None
    assert failure.get("message") == "x1 is 0x1, expected 0x2"
    assert failure.text == "a.pkvm.toml:11: x1 is 0x1, expected 0x2\nmore: 100%"
    assert bad.get("name") == "bad <&> ?[android16-6.12]"
    assert "[0] hello" in (bad.findtext("system-out") or "")
    assert later.find("skipped") is not None


def test_ktap_has_a_subtest_for_each_file() -> None:
    assert ktap.write(RESULTS).splitlines() == [
        "KTAP version 1",
        "1..2",
        "  KTAP version 1",
        "  # Subtest: a.pkvm.toml",
        "  1..3",
        "  ok 1 good[android16-6.12]",
        "  # a.pkvm.toml:11: x1 is 0x1, expected 0x2",
        "  # a.pkvm.toml:11: more: 100%",
        "  not ok 2 bad <&> \x01[android16-6.12]",
        "  # a.pkvm.toml:20: not yet",
        "  ok 3 later _ x # SKIP not yet",
        "not ok 1 a.pkvm.toml",
        "  KTAP version 1",
        "  # Subtest: b.pkvm.toml",
        "  1..1",
        "  # b.pkvm.toml:1: no",
        "  not ok 1 b.pkvm.toml # ERROR",
        "not ok 2 b.pkvm.toml",
    ]


def test_sarif_has_each_breach_once_at_its_source_line_with_the_cases_that_saw_it() -> None:
    log = json.loads(sarif.write(RESULTS))
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(CONTRACTS)
    (result,) = run["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "double-fetch"
    place = result["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("hyp/el2.c", 31)
    assert len(result["properties"]["cases"]) == 2


def test_annotations_are_escaped_as_workflow_commands_want_it() -> None:
    assert list(commands(RESULTS)) == [
        "::warning file=hyp/el2.c,line=31,title=double-fetch::8 bytes are read again (once)",
        "::error file=a.pkvm.toml,line=11,title=bad <&> \x01[android16-6.12]::x1 is 0x1, expected 0x2%0Amore: 100%25",
        "::warning file=hyp/el2.c,line=31,title=double-fetch::8 bytes are read again (once)",
        "::error file=b.pkvm.toml,line=1,title=b.pkvm.toml::no",
    ]


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(dump(RESULTS))
    assert load(tmp_path / "r.json") == RESULTS


def test_a_report_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--junit .*No such file"):
        write_report("junit", tmp_path / "no" / "x.xml", RESULTS)
