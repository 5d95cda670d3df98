"""SARIF 2.1.0: the breaches of contracts, at their source lines, for code scanning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pkvm_emu import __version__
from pkvm_emu.contracts.rules import CONTRACTS, Level
from pkvm_emu.testing.results import CaseResult

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning"}


def write(results: Sequence[CaseResult]) -> str:
    """The file's text. The same breach in several cases is one result."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for result in results:
        for finding in result.findings:
            key = (finding["contract"], finding["where"], finding["entry"])
            if key not in found:
                found[key] = _result(result, finding)
            found[key]["properties"]["cases"].append(f"{result.file}:{result.line} {result.title}")
    run = {
        "tool": {
            "driver": {
                "name": "pkvm-emu",
                "version": __version__,
                "informationUri": "https://source.android.com/docs/core/virtualization/pkvm-modules",
                "rules": [_rule(name) for name in CONTRACTS],
            }
        },
        "columnKind": "utf16CodeUnits",
        "results": list(found.values()),
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(name: str) -> dict[str, Any]:
    contract = CONTRACTS[name]
    return {
        "id": name,
        "shortDescription": {"text": contract.rule},
        "fullDescription": {"text": f"{contract.rule}: {contract.why}"},
        "defaultConfiguration": {"level": "error" if contract.level is Level.ERROR else "warning"},
    }


def _result(result: CaseResult, finding: dict[str, Any]) -> dict[str, Any]:
    # Without debug information the case is all there is to point at.
    file, line = finding["file"] or result.file, finding["line"] or result.line
    place = {"artifactLocation": {"uri": file.lstrip("/")}, "region": {"startLine": max(int(line), 1)}}
    return {
        "ruleId": finding["contract"],
        "ruleIndex": list(CONTRACTS).index(finding["contract"]),
        "level": _LEVELS[finding["level"]],
        "message": {"text": f"{finding['message']} (at {finding['where']}, in {finding['entry']})"},
        "locations": [{"physicalLocation": place, "logicalLocations": [{"fullyQualifiedName": finding["where"]}]}],
        "partialFingerprints": {"pkvmEmu/v1": f"{finding['contract']}:{finding['where']}:{finding['entry']}"},
        "properties": {"cases": []},
    }
