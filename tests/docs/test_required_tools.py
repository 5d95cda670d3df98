"""What is skipped on a developer's machine fails in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPS = """\
import pytest

@pytest.mark.skipif(True, reason="no such tool")
def test_marked(): ...

def test_inside():
    pytest.importorskip("no_such_package_at_all")

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False

def test_runs(): ...
"""


def _run(place: Path, required: str, *files: str) -> str:
    (place / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (place / "test_skips.py").write_text(SKIPS)
    (place / "test_file.py").write_text("import pytest\npytest.skip('no tool', allow_module_level=True)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    environment = {**os.environ, "PKVM_EMU_REQUIRE_TOOLS": required, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize(
    ("required", "counts"),
    [("", "1 passed, 3 skipped, 1 xfailed"), ("0", "1 passed, 3 skipped, 1 xfailed")],
    ids=["unset", "zero"],
)
def test_without_the_variable_a_missing_tool_skips(tmp_path: Path, required: str, counts: str) -> None:
    assert counts in _run(tmp_path, required)


def test_with_the_variable_a_missing_tool_fails(tmp_path: Path) -> None:
    # A mark skips in the set-up of a test, which counts as an error.
    output = _run(tmp_path, "1", "test_skips.py")
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in output
    assert "no such tool (PKVM_EMU_REQUIRE_TOOLS is set" in output


def test_with_the_variable_a_file_that_skips_fails(tmp_path: Path) -> None:
    assert "1 error" in _run(tmp_path, "1", "test_file.py")
