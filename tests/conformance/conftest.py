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
#: hVHE, LPA2, PAuth, no FGT; 1 GiB of RAM at 0x40000000.
RECORDED = MachineProfile(lpa2=True)
UART, RTC = 0x0900_0000, 0x0901_0000
#: The id registers of a PL031 from 0xfe0 on.
RTC_IDS = (0x31, 0x10, 0x04, 0x00, 0x0D, 0xF0, 0x05, 0xB1)
_ID_OFFSET = 0xFE0


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleFile]:
    """Builds a module of ``modules/`` by name."""
    output = tmp_path_factory.mktemp("conformance")
    built: dict[str, ModuleFile] = {}

    def build(name: str) -> ModuleFile:
        if name not in built:
            # imp_mod is linked against the exports of exp_mod.
            symbols = [output / "exp_mod.ko"] if name == "imp_mod" else []
            if symbols:
                build("exp_mod")
            result = build_module(HERE / "modules" / name, output / f"{name}.ko", "android16-6.12", symbols=symbols)
            built[name] = ModuleFile.load(result.path)
        return built[name]

    return build


Boot = Callable[..., System]


@pytest.fixture(scope="session")
def boot(module: Callable[[str], ModuleFile]) -> Boot:
    """Boots a module on the board of the recordings: a PL011 that the host has touched, a PL031 that it has not.

    ``boot(cmdline)`` goes on to deprivilege the host, as the recorded boots did.
    """

    def run(cmdline: str = "", *modules: str, profile: MachineProfile = RECORDED) -> System:
        system = System(generation("android16-6.12"), CommandLine(cmdline), profile)
        engine = system.machine.engine
        engine.map_mmio(UART, 0x1000, lambda offset, size: 0, lambda offset, size, value: None)
        engine.map_mmio(RTC, 0x1000, _read_rtc, lambda offset, size, value: None)
        run_boot(system, [module(name) for name in modules or ("ops_test",)])
        console = system.kernel.memory.reserve_vmalloc_area(0x1000)
        system.kernel.memory.map(console, UART, 0x1000, "device")
        system.kernel.access("host_store32", console, ord("!"))
        _leave_block(system)
        return system

    return run


def _leave_block(system: System) -> None:
    """Use up the 2 MiB block that the module lies in, as everything that a real boot allocates does.

    A block without pages of the hypervisor is mapped as a block, and that shows in the leaf entries.
    """
    pages = system.kernel.pages
    first = pa = pages.alloc()
    while pa >> 21 == first >> 21:
        pa = pages.alloc()


def _read_rtc(offset: int, size: int) -> int:
    index, rest = divmod(offset - _ID_OFFSET, 4)
    return RTC_IDS[index] if 0 <= index < len(RTC_IDS) and not rest else 0


@pytest.fixture(scope="session")
def start() -> Callable[[System, str], int]:
    """``start(system, phase)`` is ``echo PHASE > /sys/module/ops_test/parameters/run``."""

    def run(system: System, phase: str) -> int:
        parameters = system.kernel.parameters
        parameter = next(p for p in parameters.of(system.modules["ops_test"]) if p.name == "run")
        return parameters.set(parameter, f"{phase}\n")

    return run
