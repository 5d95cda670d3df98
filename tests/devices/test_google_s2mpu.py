"""The models of Google's S2MPU: who may reach what by the tables, faults, and the registers that drivers wait for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pkvm_emu
from pkvm_emu.devices.model import DmaError
from pkvm_emu.devices.models import for_compatible
from pkvm_emu.devices.models.google_s2mpu import S2mpu, S2mpuV9, SysmmuSync
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.system import System

BASE, SIZE = 0x1000_0000, 0x1_0000
RAM = 0x4000_0000
TABLE = 0x4200_0000
TABLE_ATTRIBUTES = 1
Make = Callable[[type], S2mpu]


@pytest.fixture(scope="module")
def system() -> System:
    return pkvm_emu.boot("16", profile=MachineProfile(ram_size=64 << 20))


@pytest.fixture
def make(system: System) -> Make:
    return lambda kind: kind(system.mmio, BASE, SIZE, "s2mpu")


def on(model: S2mpu, vid: int = 0) -> S2mpu:
    """Switch protection on, with a context for the VID."""
    model.write(0x104, 4, 8 | vid)
    if isinstance(model, S2mpuV9):
        model.write(0x50, 4, 1 << vid)
    else:
        model.write(0x00, 4, 1)
    return model


def l1(vid: int, gigabyte: int) -> int:
    """Offset of the L2TABLE_ADDR register; the attributes follow it."""
    return 0x4000 + vid * 0x200 + gigabyte * 8


def allowed(model: S2mpu, address: int, vid: int = 0) -> str:
    text = ""
    for letter, is_write in (("r", False), ("w", True)):
        try:
            assert model.translate(vid, address, is_write) == address
            text += letter
        except DmaError:
            text += "-"
    return text


@pytest.mark.parametrize("kind", [S2mpu, S2mpuV9])
def test_nothing_is_checked_before_protection_is_switched_on(make: Make, kind: type) -> None:
    model = make(kind)
    assert allowed(model, RAM) == "rw"
    assert allowed(on(model), RAM) == "--"


@pytest.mark.parametrize("kind", [S2mpu, S2mpuV9])
@pytest.mark.parametrize(("prot", "result"), [(0, "--"), (1, "r-"), (2, "-w"), (3, "rw")])
def test_a_gigabyte_may_have_one_permission(make: Make, kind: type, prot: int, result: str) -> None:
    model = on(make(kind))
    model.write(l1(0, 1) + 4, 4, prot << 1)
    assert allowed(model, RAM) == result
    assert allowed(model, RAM + 0x3FFF_F000) == result
    assert allowed(model, 0x8000_0000) == "--"


@pytest.mark.parametrize(("kind", "bits", "shift"), [(S2mpu, 2, 0), (S2mpuV9, 4, 2)])
@pytest.mark.parametrize("page", [0, 1, 7, 8, 15, 16, 0x3FF])
def test_a_table_has_a_permission_for_each_page(
    system: System, make: Make, kind: type, bits: int, shift: int, page: int
) -> None:
    model = on(make(kind))
    size = (1 << 18) * bits // 8
    system.machine.ram.write(TABLE, bytes(size))
    at = page * bits
    system.machine.ram.write_u32(TABLE + at // 32 * 4, 1 << at % 32 + shift)
    model.write(l1(0, 1), 4, TABLE >> 4)
    model.write(l1(0, 1) + 4, 4, TABLE_ATTRIBUTES)
    assert allowed(model, RAM + page * 4096) == "r-"
    assert allowed(model, RAM + (page + 1) * 4096) == "--"


def test_each_vid_has_its_own_entries_and_needs_a_context(make: Make) -> None:
    model = on(make(S2mpu), vid=3)
    model.write(l1(3, 1) + 4, 4, 3 << 1)
    model.write(l1(2, 1) + 4, 4, 3 << 1)
    assert allowed(model, RAM, vid=3) == "rw"
    assert allowed(model, RAM, vid=2) == "--"
    assert model.fault_info[2].kind == 4
    model.poke(0x60, 0x1100_0000)
    assert allowed(model, RAM, vid=2) == "rw"


def test_a_refused_access_is_in_the_fault_registers_until_it_is_cleared(make: Make) -> None:
    model = on(make(S2mpu), vid=5)
    with pytest.raises(DmaError, match=r"^s2mpu refuses VID 5 a DMA write at 0x123456000$"):
        model.translate(5, 0x1_2345_6000, is_write=True)
    assert model.read(0x2000, 4) == 1 << 5
    assert (model.read(0x2008 + 5 * 0x20, 4) << 32 | model.read(0x2004 + 5 * 0x20, 4)) == 0x1_2345_6000
    info = model.fault_info[5]
    assert (info.vid, info.kind, info.is_write) == (5, 2, 1)
    model.write(0x2C, 4, 1 << 5)
    assert model.read(0x2000, 4) == 0


def test_protection_of_a_v9_is_switched_by_vid(make: Make) -> None:
    model = make(S2mpuV9)
    model.write(0x50, 4, 0b110)
    model.write(0x54, 4, 0b010)
    assert model.read(0x50, 4) == 0b100
    assert [model.protects(vid) for vid in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(("kind", "version"), [(S2mpu, 0x2000_0000), (S2mpuV9, 0x9000_0000)])
def test_the_identity_cannot_be_written(make: Make, kind: type, version: int) -> None:
    model = make(kind)
    model.write(0x60, 4, 0)
    model.write(0x100, 4, 0)
    assert (model.read(0x60, 4), model.read(0x100, 4)) == (version, 8)


@pytest.mark.parametrize(("kind", "command"), [(S2mpu, 0x102C), (S2mpuV9, 0x102C), (SysmmuSync, 0x8000)])
def test_an_invalidation_is_complete_at_once(make: Make, kind: type, command: int) -> None:
    model = make(kind)
    assert model.read(command + 4, 4) == 0
    model.write(command, 4, 1)
    assert model.read(command + 4, 4) == 1


@pytest.mark.parametrize(
    ("text", "kind"), [("google,s2mpu", S2mpu), ("google,s2mpu-v9", S2mpuV9), ("google,sysmmu_sync", SysmmuSync)]
)
def test_a_node_gets_its_model_by_compatible(text: str, kind: type) -> None:
    assert for_compatible(text) is kind
