"""The conformance modules, compiled once a session, and the board of the recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.abi.generation import generation
from pkvm_emu.build.builder import build_module
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System, run_boot

HERE = Path(__file__).parent
#: hVHE, LPA2, PAuth, no FGT; 1 GiB of RAM at 0x40000000; PL011 and PL031: the machine of the recordings is the default one.
RECORDED = MachineProfile()


@pytest.fixture(scope="session")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a module of ``modules/`` by name and gives the path of its .ko."""
    output = tmp_path_factory.mktemp("conformance")
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            # imp_mod is linked against the exports of exp_mod.
            symbols = [build("exp_mod")] if name == "imp_mod" else []
            result = build_module(HERE / "modules" / name, output / f"{name}.ko", "android16-6.12", symbols=symbols)
            built[name] = Path(result.path)
        return built[name]

    return build


@pytest.fixture(scope="session")
def module(module_path: Callable[[str], Path]) -> Callable[[str], ModuleFile]:
    """The same, read once."""
    read: dict[str, ModuleFile] = {}

    def load(name: str) -> ModuleFile:
        if name not in read:
            read[name] = ModuleFile.load(module_path(name))
        return read[name]

    return load


Boot = Callable[..., System]


@pytest.fixture(scope="session")
def boot(module: Callable[[str], ModuleFile]) -> Boot:
    """``boot(cmdline, *modules)`` boots and deprivileges the host, as the recorded boots did."""

    def run(cmdline: str = "", *modules: str, profile: MachineProfile = RECORDED) -> System:
        system = System(generation("android16-6.12"), CommandLine(cmdline), profile)
        run_boot(system, [module(name) for name in modules or ("ops_test",)])
        return system

    return run


@pytest.fixture(scope="session")
def start() -> Callable[[System, str], int]:
    """``start(system, phase)`` is ``echo PHASE > /sys/module/ops_test/parameters/run``."""

    def run(system: System, phase: str) -> int:
        parameters = system.kernel.parameters
        parameter = next(p for p in parameters.of(system.modules["ops_test"]) if p.name == "run")
        return parameters.set(parameter, f"{phase}\n")

    return run
