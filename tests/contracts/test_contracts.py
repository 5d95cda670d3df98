"""Each contract has a module that breaks just it, and one that comes close and is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.build.builder import build_module
from pkvm_emu.contracts.rules import CONTRACTS, EVERYTHING, Group, Level, Selection
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.system import System, boot

FAULTY = Path(__file__).parents[2] / "modules" / "faulty"
PFN = 0x48000
#: A generation without the op, or with another one, has nothing to break.
WITHOUT_HEAP = ("heap-out-of-bounds", "heap-use-after-free")
Build = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    place = tmp_path_factory.mktemp("faulty")
    built: dict[tuple[str, str], Path] = {}

    def get(fault: str, generation: str) -> Path:
        if (fault, generation) not in built:
            target = place / f"{fault}-{generation}.ko"
            built[fault, generation] = build_module(FAULTY, target, generation, {"FAULT": fault}).path
        return built[fault, generation]

    return get


def run(module: Path) -> System:
    """Boot with every contract watched, and call it; what ends the system ends it."""
    made: list[System] = []
    try:
        system = boot(modules=[module], contracts=EVERYTHING, prepare=made.append)
        system.call("faulty_call", PFN)
    except HypPanic:
        pass
    return made[0]


def broken(system: System) -> list[tuple[str, str]]:
    assert system.contracts is not None
    return [(finding.contract, finding.level.value) for finding in system.contracts.findings]


def test_the_table_and_the_modules_are_about_the_same_contracts() -> None:
    names = {path.stem for path in (FAULTY / "hyp").glob("*.c")}
    assert names == {f"{name.replace('-', '_')}_{kind}" for name in CONTRACTS for kind in ("broken", "right")}


@pytest.mark.parametrize("generation", ["14", "16"])
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_module_that_breaks_one_contract_is_reported_for_just_that(
    build: Build, contract: str, generation: str
) -> None:
    if generation == "14" and contract in WITHOUT_HEAP:
        return
    system = run(build(f"{contract.replace('-', '_')}_broken", generation))
    assert set(broken(system)) == {(contract, CONTRACTS[contract].level.value)}
    assert system.contracts is not None
    finding = system.contracts.findings[0]
    assert finding.line is not None
    assert finding.line.file.endswith(f"{contract.replace('-', '_')}_broken.c") or finding.line.file.endswith(
        "faulty.h"
    )
    assert finding.rule == CONTRACTS[contract].rule
    assert "\n" not in str(finding)


@pytest.mark.parametrize("generation", ["14", "16"])
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_module_that_comes_close_and_is_right_is_not_reported(build: Build, contract: str, generation: str) -> None:
    if generation == "14" and contract in WITHOUT_HEAP:
        return
    system = run(build(f"{contract.replace('-', '_')}_right", generation))
    assert broken(system) == []
    assert system.is_secure


def test_contracts_about_ops_need_no_memory_hooks(build: Build) -> None:
    system = boot(modules=[build("double_fetch_broken", "16")], contracts="ops")
    system.call("faulty_call", PFN)
    assert broken(system) == []
    system = boot(modules=[build("share_without_pin_broken", "16")], contracts="ops")
    system.call("faulty_call", PFN)
    assert broken(system) == [("share-without-pin", "error")]


def test_each_can_be_an_error_a_warning_or_off(build: Build) -> None:
    module = build("pin_left_behind_broken", "16")
    for word in ("error", "warning"):
        system = boot(modules=[module], contracts=f"pin-left-behind={word}")
        system.call("faulty_call", PFN)
        assert broken(system) == [("pin-left-behind", word)]
    system = boot(modules=[module], contracts="pin-left-behind=off")
    system.call("faulty_call", PFN)
    assert broken(system) == []


def test_the_budget_is_a_number_of_instructions(build: Build) -> None:
    module = build("instruction_budget_right", "16")
    system = boot(modules=[module], contracts="memory,budget=100000")
    system.call("faulty_call", PFN)
    assert broken(system) == [("instruction-budget", "error")]


def test_findings_go_back_with_a_snapshot_and_the_same_place_is_said_once(build: Build) -> None:
    system = boot(modules=[build("share_without_pin_broken", "16")], contracts="ops")
    before = system.snapshot()
    for number in range(3):
        system.call("faulty_call", PFN + number)
    assert len(broken(system)) == 1
    system.restore(before)
    assert broken(system) == []


@pytest.mark.parametrize("words", ["nothing", "double-fetch", "double-fetch=bad", "budget=0", "budget=x", "=error"])
def test_words_that_name_no_contract_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match="none of ops, memory, off"):
        Selection.parse(words)


def test_words_are_read_in_their_order() -> None:
    assert Selection.parse("memory,double-fetch=off").level("double-fetch") is Level.OFF
    assert not Selection.parse("memory,off").levels
    assert Selection.parse("off,double-fetch=error").watches(Group.MEMORY)
    assert not Selection.parse("").watches(Group.MEMORY)
