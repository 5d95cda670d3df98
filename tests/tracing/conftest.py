"""Modules with events and systems to trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from trace_support import Start, Traced

from pkvm_emu.build.builder import build_module
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import boot

REPOSITORY = Path(__file__).parents[2]
TREES = {
    "pkvm_events": REPOSITORY / "modules/pkvm_events",
    "pkvm_driver": REPOSITORY / "tests/conformance/modules/pkvm_driver",
}

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """``built(name, generation)``: ``pkvm_events`` (the sample with events) or ``pkvm_driver`` (of the recordings)."""
    place = tmp_path_factory.mktemp("tracing")
    done: dict[tuple[str, str], Path] = {}

    def build(name: str = "pkvm_events", generation: str = "16") -> Path:
        if (name, generation) not in done:
            target = place / generation / f"{name}.ko"
            done[name, generation] = build_module(TREES[name], target, generation).path
        return done[name, generation]

    return build


@pytest.fixture(scope="session")
def start(built: Build) -> Start:
    """``start(module, generation, cmdline, cpus)``: a booted system with tracing at hand."""

    def run(module: str = "pkvm_events", generation: str = "16", cmdline: str = "", cpus: int = 1) -> Traced:
        return Traced(boot(generation, [built(module, generation)], cmdline, MachineProfile(cpus=cpus)))

    return run


@pytest.fixture(scope="session")
def plain() -> Start:
    """``plain(generation, modules=[...], cmdline=..., ram_mib=...)``: the same with modules of the test's own, or none."""

    def run(generation: str = "16", modules: Sequence[Path] = (), cmdline: str = "", ram_mib: int = 1024) -> Traced:
        return Traced(boot(generation, list(modules), cmdline, MachineProfile(ram_size=ram_mib << 20)))

    return run
