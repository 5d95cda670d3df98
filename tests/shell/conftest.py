"""A booted system with a small module, and a shell on it; every test starts from the same snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shell_support import SOURCES, ShellRunner

from pkvm_emu.build.builder import build_module
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.machine.snapshot import Snapshot
from pkvm_emu.system import System, boot


@pytest.fixture(scope="session")
def knobs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``knobs.ko``: parameters of several modes, an exit function, no EL2 code."""
    place = tmp_path_factory.mktemp("knobs")
    for name, text in SOURCES.items():
        path = place / "knobs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return build_module(place / "knobs", place / "knobs.ko").path


@pytest.fixture(scope="session")
def booted(knobs_path: Path) -> tuple[System, Snapshot, ModuleFile]:
    """A system that has loaded ``knobs`` with ``level=3``, its snapshot, and the module's file."""
    system = boot(modules=[], android=16, cmdline="quiet knobs.level=3")
    file = ModuleFile.load(knobs_path)
    system.load(file)
    return system, system.snapshot(), file


@pytest.fixture
def system(booted: tuple[System, Snapshot, ModuleFile]) -> Iterator[System]:
    """The system, back at its snapshot."""
    system, snapshot, _ = booted
    system.restore(snapshot)
    yield system
    system.restore(snapshot)


@pytest.fixture
def sh(system: System, booted: tuple[System, Snapshot, ModuleFile]) -> Iterator[ShellRunner]:
    """Runs scripts and keeps what they print."""
    runner = ShellRunner(system, booted[2])
    yield runner
    runner.session.close()
