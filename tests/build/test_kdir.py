"""The documented Makefile works with ``make KDIR=…``, builds the module in place, and cleans up behind itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from module_trees import EL2_C

from pkvm_emu.build.builder import build_module
from pkvm_emu.build.kdir import kdir
from pkvm_emu.errors import UsageError

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def tree(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sample


def make(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment["PWD"] = str(directory)  # as a shell sets it; the documented Makefile uses it
    return subprocess.run(
        ["make", *arguments], cwd=directory, capture_output=True, text=True, timeout=120, env=environment
    )


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_the_directory_is_made_once_and_named_after_its_content(tree: Path, tmp_path: Path) -> None:
    first = kdir()
    assert first.parent == tmp_path / "cache" / "pkvm-emu"
    assert (first / "Makefile").is_file()
    stamp = (first / "Makefile").stat().st_mtime_ns
    assert kdir() == first
    assert (first / "Makefile").stat().st_mtime_ns == stamp


def test_a_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*; set XDG_CACHE_HOME"):
        kdir(tmp_path / "file")


@needs_make
def test_make_builds_and_make_clean_removes_what_it_left(tree: Path) -> None:
    before = files(tree)
    done = make(tree, f"KDIR={kdir()}")
    assert done.returncode == 0, done.stderr
    assert "LD [M]" in done.stdout
    assert files(tree) - before == {"sample.ko", "Module.symvers", "modules.order"}
    assert (tree / "sample.ko").read_bytes() == build_module(
        tree.absolute(), tree.parent / "again.ko"
    ).path.read_bytes()
    (tree / "hyp" / "hyp.lds").write_text("left by a real kernel build")
    done = make(tree, f"KDIR={kdir()}", "clean")
    assert done.returncode == 0, done.stderr
    assert files(tree) == before


@needs_make
def test_make_can_be_called_on_the_directory_itself_with_the_usual_variables(tree: Path) -> None:
    arguments = [
        "-C",
        str(kdir()),
        f"M={tree}",
        "ARCH=arm64",
        "LLVM=1",
        "-j2",
        "V=1",
        "PKVM_EMU_GENERATION=android15-6.6",
    ]
    done = make(tree.parent, *arguments, "CONFIG_PKVM_FTRACE=y", "modules")
    assert done.returncode == 0, done.stderr
    assert "-DPKVM_EMU_ANDROID=15" in done.stdout
    assert "-fpatchable-function-entry=3" in done.stdout
    assert (tree / "sample.ko").is_file()


@needs_make
def test_a_mistake_in_the_source_fails_make_with_the_compilers_words(tree: Path) -> None:
    (tree / "hyp" / "el2.c").write_text(EL2_C + "int bad = undeclared;\n")
    done = make(tree, f"KDIR={kdir()}")
    assert done.returncode != 0
    assert "hyp/el2.c:" in done.stderr
    assert "undeclared" in done.stderr
    assert not (tree / "sample.ko").exists()


@needs_make
def test_make_without_a_module_says_what_is_missing(tree: Path) -> None:
    done = make(tree.parent, "-C", str(kdir()))
    assert done.returncode != 0
    assert "say which module to build: make -C KDIR M=DIRECTORY" in done.stderr


@needs_make
def test_make_modules_install_is_refused_in_words(tree: Path) -> None:
    done = make(tree.parent, "-C", str(kdir()), f"M={tree}", "modules_install")
    assert done.returncode != 0
    assert "modules_install" in done.stderr
