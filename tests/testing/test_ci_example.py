"""The example repository passes, and each step of its workflows does what it says, with the package as it is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "ci"
WORKFLOWS = {".github/workflows/pkvm.yml": r"^ +(?:- )?run: (.+)$", ".gitlab-ci.yml": r"^ {4}- (.+)$"}


def steps(name: str) -> list[str]:
    """The commands of a workflow, in order."""
    return re.findall(WORKFLOWS[name], (EXAMPLE / name).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_page_shows_the_workflow_that_is_there(name: str) -> None:
    assert f"```yaml\n{(EXAMPLE / name).read_text()}```" in (ROOT / "docs" / "ci.md").read_text()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> dict[str, str]:
    """The environment of a fresh machine of the CI: a Python of its own, and an index that has this package."""
    place = tmp_path_factory.mktemp("runner") / "python"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {
        **clean,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PIP_FIND_LINKS": f"{wheel.parent} {os.environ.get('PIP_FIND_LINKS', '')}".strip(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CI_NODE_INDEX": "1",
        "CI_NODE_TOTAL": "2",
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_step_of_the_workflow_succeeds(name: str, tmp_path: Path, runner: dict[str, str]) -> None:
    repository = tmp_path / "vendor"
    shutil.copytree(EXAMPLE, repository, ignore=shutil.ignore_patterns("build-out", "__pycache__", ".pytest_cache"))
    commands = steps(name)
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=repository, env=runner, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    made = {path.name for path in repository.iterdir()}
    assert "junit.xml" in made
    assert made >= ({"coverage", "findings.sarif"} if "github" in name else {"cases.xml", "shard-1.json"})
    golden = ["diff", "-r", EXAMPLE / "tests" / "golden", repository / "tests" / "golden"]
    changed = subprocess.run(golden, capture_output=True, text=True, check=False)
    assert changed.returncode == 0, changed.stdout


def test_a_change_of_behaviour_reads_like_a_diff(tmp_path: Path) -> None:
    repository = tmp_path / "vendor"
    shutil.copytree(EXAMPLE, repository, ignore=shutil.ignore_patterns("build-out", "__pycache__", ".pytest_cache"))
    source = repository / "modules" / "gate" / "hyp" / "el2.c"
    source.write_text(source.read_text().replace("0xC20001FF", "0xC20001FE"))
    done = subprocess.run(
        [sys.executable, "-m", "pkvm_emu", "test", "tests", "--golden", "--android", "16"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "tests/gate.pkvm.toml:15: x1 is 0x1, expected 0x2" in done.stdout
    assert "-  smc sip 0x200: 200\n+  smc sip 0x200: 198\n" in done.stdout
