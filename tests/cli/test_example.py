"""``pkvm-emu example`` gives the sample of a generation, and never overwrites anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkvm_emu.cli.example import copy_example
from pkvm_emu.cli.main import main

MODULES = Path(__file__).resolve().parents[2] / "modules"


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "build-out" not in path.parts and path.suffix in (".c", ".bazel", "")
    }


@pytest.mark.parametrize(
    ("android", "sample"),
    [
        (None, "pkvm_driver"),
        ("16", "pkvm_driver"),
        ("15", "pkvm_driver"),
        ("14", "pkvm_driver_a14"),
        ("5.15", "pkvm_driver_a14"),
    ],
)
def test_the_copy_is_the_sample_of_the_generation(tmp_path: Path, android: str | None, sample: str) -> None:
    assert _files(copy_example(tmp_path / "mine", android)) == _files(MODULES / sample)


def test_it_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example", "--android", "14", str(tmp_path / "mine")]) == 0
    assert f"pkvm-emu run {tmp_path / 'mine'} --android 14" in capsys.readouterr().out


def test_an_existing_directory_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"pkvm-emu: {tmp_path} exists: name a directory that does not\n"
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example", "/proc/mine"]) == 2
    assert "pkvm-emu: cannot write /proc/mine: " in capsys.readouterr().err


def test_an_unknown_generation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example", "--android", "12", str(tmp_path / "mine")]) == 2
    assert "unknown Android generation '12'" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
