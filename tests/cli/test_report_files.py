"""The files of modules in the report of a run, as text and as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pkvm_emu.build.builder import build_module
from pkvm_emu.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "mailbox"


@pytest.fixture(scope="module")
def mailbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("mailbox") / "mailbox"
    shutil.copytree(EXAMPLE, tree, ignore=shutil.ignore_patterns("build-out"))
    return build_module(tree, tree / "mailbox.ko").path


def test_the_report_lists_files_with_their_numbers(mailbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(mailbox)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Files")
    expected = "  mailbox: /sys/kernel/debug/mailbox/state, /sys/kernel/debug/mailbox/calls, /dev/mailbox (10:127)"
    assert lines[at + 1] == expected


def test_the_json_report_has_them_one_by_one(mailbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--json", str(mailbox)])
    files = json.loads(capsys.readouterr().out)["files"]
    assert files[-1] == {"path": "/dev/mailbox", "module": "mailbox", "device": [10, 127]}
    assert [entry["device"] for entry in files[:-1]] == [None, None]
