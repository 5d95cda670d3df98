"""The schema that ships for editors, the code that does what it allows, and the page that explains it are about the same things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.testing.cases import expect, reader, steps

SCHEMA = json.loads((Path(reader.__file__).with_name("schema.json")).read_text())
PAGE = (Path(pkvm_emu.__file__).parents[2] / "docs" / "testing.md").read_text()
STEP, EXPECT = SCHEMA["$defs"]["step"], SCHEMA["$defs"]["expect"]
REGISTERS = {"x0", "x1", "x2", "x3", "value"}


def test_each_action_of_the_schema_is_done_and_no_other() -> None:
    named = {rule["required"][0] for rule in STEP["oneOf"]}
    assert named == set(steps.ACTIONS)
    assert named <= set(STEP["properties"])


def test_each_expectation_of_the_schema_is_judged_and_no_other() -> None:
    assert set(EXPECT["properties"]) == set(expect.CHECKS) | REGISTERS


@pytest.mark.parametrize(
    "names",
    [STEP["properties"], EXPECT["properties"], SCHEMA["$defs"]["case"]["properties"], SCHEMA["properties"]],
    ids=["step", "expect", "case", "file"],
)
def test_each_word_is_explained(names: dict[str, object]) -> None:
    # x1 and x2 are in "`x0` to `x3`"; the tables of a case are in its examples.
    words = [name for name in names if name not in {"x1", "x2", "case", "step", "name", "expect"}]
    missing = [word for word in words if not any(mark in PAGE for mark in (f"`{word}", f"\n{word} = ", f".{word} = "))]
    assert missing == []
