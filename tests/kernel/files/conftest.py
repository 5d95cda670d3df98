"""Drivers made from C text, on each kernel line, and systems that have them loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pkvm_emu
from pkvm_emu.build.builder import build_module
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.system import System

LINES = ("android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12")
Loaded = Callable[[str], System]


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """``loaded(line)``: a system of that line with the file's ``DRIVER``, an ordinary module, loaded; booted once."""
    systems: dict[str, System] = {}

    def get(line: str) -> System:
        if line not in systems:
            tree: Path = tmp_path_factory.mktemp("files")
            (tree / "Makefile").write_text("obj-m := filedrv.o\n")
            (tree / "filedrv.c").write_text(request.module.DRIVER)
            file = ModuleFile.load(build_module(tree, tree / "filedrv.ko", line).path)
            systems[line] = pkvm_emu.boot(line)
            systems[line].load(file)
        return systems[line]

    return get


def _undone(system: System) -> Iterator[System]:
    before = system.snapshot()
    yield system
    system.restore(before)


@pytest.fixture(params=LINES)
def system(request: pytest.FixtureRequest, loaded: Loaded) -> Iterator[System]:
    """Each kernel line with the driver; what a test does is undone."""
    yield from _undone(loaded(request.param))


@pytest.fixture
def newest(loaded: Loaded) -> Iterator[System]:
    """6.12 with the driver; what a test does is undone."""
    yield from _undone(loaded(LINES[-1]))
