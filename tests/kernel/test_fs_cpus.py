"""``/sys/devices/system/cpu``: the files show which CPUs are online, and a write takes one off or on."""

from __future__ import annotations

import pytest

import pkvm_emu
from pkvm_emu.kernel.fs.cpus import cpu_list
from pkvm_emu.kernel.fs.node import FsError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

ROOT = "/sys/devices/system/cpu"


@pytest.fixture(scope="module")
def system(pkvm_driver) -> System:  # type: ignore[no-untyped-def]
    return pkvm_emu.boot(modules=[pkvm_driver("16")], profile=MachineProfile(cpus=3))


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([0], "0"), ([0, 1], "0-1"), ([0, 2], "0,2"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")]
)
def test_lists_of_cpus_have_the_kernels_form(numbers: list[int], text: str) -> None:
    assert cpu_list(numbers) == text


def test_all_cpus_are_online_after_the_boot(system: System) -> None:
    assert system.fs.read(f"{ROOT}/online") == "0-2\n"
    assert system.fs.read(f"{ROOT}/offline") == "\n"
    assert system.fs.read(f"{ROOT}/present") == system.fs.read(f"{ROOT}/possible") == "0-2\n"


def test_a_write_takes_a_cpu_off_and_on(system: System) -> None:
    system.fs.write(f"{ROOT}/cpu1/online", "0\n")
    assert system.fs.read(f"{ROOT}/online") == "0,2\n"
    assert system.fs.read(f"{ROOT}/offline") == "1\n"
    assert system.fs.read(f"{ROOT}/cpu1/online") == "0\n"
    assert not system.cpu(1).online
    system.fs.write(f"{ROOT}/cpu1/online", "1\n")
    assert system.fs.read(f"{ROOT}/online") == "0-2\n"


def test_writing_what_is_so_already_changes_nothing(system: System) -> None:
    system.fs.write(f"{ROOT}/cpu2/online", "1")
    assert system.cpu(2).online


def test_a_value_that_is_no_truth_value_is_refused(system: System) -> None:
    with pytest.raises(FsError) as failure:
        system.fs.write(f"{ROOT}/cpu1/online", "perhaps\n")
    assert failure.value.errno == 22


def test_the_boot_cpu_cannot_be_taken_off(system: System) -> None:
    with pytest.raises(FsError):
        system.fs.write(f"{ROOT}/cpu0/online", "0\n")


def test_a_snapshot_brings_the_cpus_back(system: System) -> None:
    saved = system.snapshot()
    system.fs.write(f"{ROOT}/cpu1/online", "0\n")
    system.restore(saved)
    assert system.fs.read(f"{ROOT}/online") == "0-2\n"
