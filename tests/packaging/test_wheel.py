"""The wheel is complete: what it holds is enough to copy, build and run the sample far from the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The files in the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("tree", ["include", "pkvm_driver", "pkvm_driver_a14"])
def test_headers_and_samples_are_all_inside(names: set[str], tree: str) -> None:
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "modules" / tree).rglob("*") if path.is_file()}
    expected = {f"pkvm_emu/{name}" for name in there if "build-out" not in name and not name.endswith((".ko", ".o"))}
    assert expected
    assert expected <= names


def test_firmware_and_type_information_are_inside(names: set[str]) -> None:
    assert {"pkvm_emu/firmware/images/el1.json", "pkvm_emu/firmware/images/el2.json", "pkvm_emu/py.typed"} <= names


def test_the_sources_of_the_firmware_are_inside(names: set[str]) -> None:
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "firmware").rglob("*.S")}
    assert "firmware/el2/vectors.S" in there
    assert {f"pkvm_emu/{name}" for name in there} <= names


def test_nothing_that_was_built_is_inside(names: set[str]) -> None:
    assert not [name for name in names if name.endswith((".ko", ".o", ".pyc")) or "build-out" in name]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pkvm_emu"}


def test_the_sample_is_copied_built_and_run_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    site, place = tmp_path / "site", tmp_path / "place"
    place.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("PKVM_EMU_HEADERS", None)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "pkvm_emu", *words]
        return subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True, text=True).stdout

    where = subprocess.run(
        [sys.executable, "-c", "import pkvm_emu; print(pkvm_emu.__file__)"],
        cwd=place,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(site)
    run("example", "mine")
    run("build", "mine")
    output = run("run", "mine/build-out/pkvm_driver.ko", "--call", "pkvm_driver_hyp_hvc:1,2")
    assert "pkvm_driver_hyp_hvc(0x1, 0x2) = SMCCC_RET_SUCCESS x1=0x5" in output
