"""The two commands at the top of the README are the ones that CI runs, and name things that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CI = ROOT / ".ci" / "run"


def _commands() -> list[str]:
    return re.findall(r"^```sh\n(python3 -m venv .*)\n```$", README, re.MULTILINE)


def test_the_readme_begins_with_two_commands_of_one_line() -> None:
    run, test = _commands()
    assert "pkvm-emu run modules/pkvm_driver" in run
    assert test.endswith(".venv/bin/pytest -q -n auto")
    assert README.index(test) < README.index("## ")


def test_each_command_sets_up_what_it_uses() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in _commands():
        setup, install, main = (shlex.split(part) for part in command.split(" && "))
        assert setup == ["python3", "-m", "venv", ".venv"]
        extra = re.search(r"\[(\w+)\]", install[-1])
        assert extra is not None
        assert extra[1] in extras
        assert install[0] == ".venv/bin/pip"
        assert main[0].startswith(".venv/bin/")


def test_ci_runs_the_commands_of_the_readme_and_no_copy_of_them() -> None:
    # `--print-commands` shows what the script would run, as it read them from the README.
    done = subprocess.run(["bash", str(CI), "--print-commands"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == _commands()
    assert "pytest" not in re.sub(r"^\s*#.*$", "", CI.read_text(), flags=re.MULTILINE)


def test_ci_is_executable_and_forbids_skipped_tests() -> None:
    assert os.access(CI, os.X_OK)
    assert "PKVM_EMU_REQUIRE_TOOLS=1" in CI.read_text()
