"""IOMMU drivers of android14: registration, the host's stage-2, power, accesses to the registers."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOMEM, EPERM

import pytest
from iommu_modules import (
    APPLY,
    CHILD,
    COMPLETE,
    DABT,
    DEVICES,
    EMULATED,
    INIT,
    PREPARE,
    RESUME,
    SUSPEND,
    VALIDATE,
    Driver,
)

from pkvm_emu.hyp.iommu_pkvm import PkvmIommus
from pkvm_emu.hyp.iommu_pkvm_structs import MEMBERS, ops_offsets
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.system import boot

MMIO, SIZE = 0x1800_0000, 0x1_0000
DEVICE, CHILD_DEVICE = 0xFFFF_FF80_0010_0000, 0xFFFF_FF80_0020_0000


@pytest.fixture(params=["android14-6.1", "android14-5.15"])
def driver(request, c_module) -> Driver:
    name = request.param
    return Driver(boot(name, [c_module(el2=DEVICES, generation=name)]))


def init(driver: Driver) -> tuple[int, int]:
    """Start the driver with data shared by the host: errno, and the hyp VA of the data."""
    page = driver.page()
    driver.system.machine.ram.write_u64(page, 0xDA7A)
    assert driver.errno("host_share_hyp", page >> 12) == 0
    data = driver.system.kernel.memory.linear_va(page)
    error = driver.errno("iommu_driver_init", driver.address, data, 64)
    assert driver.errno("host_unshare_hyp", page >> 12) == 0
    return error, driver.hyp.stage1.va_of(page)


def register(driver: Driver, device: int = DEVICE, pa: int = MMIO, parent: int = 0, page: bool = True) -> int:
    memory = driver.system.kernel.memory.linear_va(driver.page()) if page else 0
    return driver.errno("iommu_register", device, driver.address, pa, SIZE, parent, 1, memory)


def test_a_new_driver_is_told_what_the_host_does_not_own(driver: Driver) -> None:
    taken = driver.page()
    driver.donate(taken)
    error, data = init(driver)
    assert error == 0
    first, *rest = driver.notes()
    assert first == (INIT, data, 64, 0xDA7A)
    assert (PREPARE, taken, taken + 4096) in rest
    assert all(call[0] == PREPARE and len(call) == 3 for call in rest)


def test_a_driver_that_fails_is_not_asked_again(driver: Driver) -> None:
    driver.answers(-EPERM)
    assert init(driver)[0] == -EPERM
    assert [call[0] for call in driver.notes()] == [INIT]
    assert register(driver) == -ENOENT


def test_data_that_the_host_does_not_share_cannot_be_pinned(driver: Driver) -> None:
    data = driver.system.kernel.memory.linear_va(driver.page())
    assert driver.errno("iommu_driver_init", driver.address, data, 64) == -EPERM
    assert driver.notes() == []


def test_registering_a_driver_twice_loses_the_lock_of_the_hypervisor(driver: Driver) -> None:
    assert init(driver)[0] == 0
    assert driver.errno("iommu_driver_init", driver.address, 0, 0) == -EEXIST
    with pytest.raises(HypPanic, match="lock was lost"):
        register(driver)


def test_a_device_needs_a_page_and_then_belongs_to_the_hypervisor(driver: Driver) -> None:
    init(driver)
    driver.notes()
    assert register(driver, page=False) == -ENOMEM
    assert register(driver) == 0
    validated = next(call for call in driver.notes() if call[0] == VALIDATE)
    device = validated[1]
    assert validated == (VALIDATE, device, DEVICE, MMIO, SIZE, 1)
    va = driver.load(device + 80)
    leaf = driver.hyp.stage1.leaf(va)
    assert leaf is not None
    assert leaf.pa == MMIO
    assert driver.hyp.ownership.owner_of(MMIO + SIZE - 4096) is Component.HYP
    driver.answers(-EPERM)
    assert driver.system.host.read(MMIO + SIZE - 8).fault is not None


def test_children_are_linked_to_their_parent(driver: Driver) -> None:
    init(driver)
    register(driver)
    driver.notes()
    assert register(driver, CHILD_DEVICE, MMIO + SIZE, parent=DEVICE, page=False) == 0
    notes = [call for call in driver.notes() if call[0] != PREPARE]
    assert notes[0] == (CHILD, DEVICE, CHILD_DEVICE)
    parent, child = driver.hyp.part(PkvmIommus).devices
    assert notes[1][0] == VALIDATE
    assert notes[1][6] == parent
    assert driver.load(parent + 40) == child + 24
    assert driver.load(child + 24) == parent + 40
    assert driver.load(child) == parent


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pa": MMIO + 8}, -EINVAL),
        ({"pa": 0x4000_0000}, -EINVAL),
        ({"pa": MMIO + 0x8000}, -EBUSY),
        ({"device": DEVICE, "pa": MMIO + SIZE}, -EBUSY),
        ({"parent": 0x1234, "pa": MMIO + SIZE}, -EINVAL),
    ],
)
def test_devices_that_do_not_fit_are_refused(driver: Driver, change: dict[str, int], expected: int) -> None:
    init(driver)
    register(driver)
    assert register(driver, **{"device": CHILD_DEVICE, "page": False, **change}) == expected
    assert register(driver, CHILD_DEVICE, MMIO + 2 * SIZE, page=False) == 0


def test_changes_reach_the_driver_and_every_powered_device_in_order(driver: Driver) -> None:
    init(driver)
    register(driver)
    register(driver, CHILD_DEVICE, MMIO + SIZE, page=False)
    assert driver.errno("iommu_pm_notify", DEVICE, 1) == 0
    driver.notes()
    page = driver.page()
    driver.donate(page)
    driver.give_back(page)
    change = (page, page + 4096)
    after = [(APPLY, DEVICE, *change), (COMPLETE, DEVICE)]
    assert driver.notes() == [(PREPARE, *change), *after, (PREPARE, *change, 7), *after]


def test_power_follows_what_the_driver_answers(driver: Driver) -> None:
    init(driver)
    register(driver)
    driver.notes()
    assert driver.errno("iommu_pm_notify", DEVICE, 1) == 0
    driver.answers(-EPERM)
    assert driver.errno("iommu_pm_notify", DEVICE, 0) == -EPERM
    driver.answers(0)
    assert driver.errno("iommu_pm_notify", DEVICE, 0) == 0
    assert driver.notes() == [(RESUME, DEVICE), (SUSPEND, DEVICE, 1), (SUSPEND, DEVICE, 1)]
    assert driver.errno("iommu_pm_notify", CHILD_DEVICE, 0) == -ENODEV
    assert driver.errno("iommu_pm_notify", DEVICE, 2) == -EINVAL


def test_the_driver_emulates_accesses_to_its_registers(driver: Driver) -> None:
    init(driver)
    register(driver)
    driver.notes()
    assert driver.system.host.read(MMIO + 0x24, 4).value == EMULATED
    assert driver.notes() == [(DABT, DEVICE, 0x24, 0x24)]
    driver.answers(-EPERM)
    assert driver.system.host.read(MMIO + 0x24, 4).fault is not None


def test_nothing_comes_after_finalize(driver: Driver) -> None:
    init(driver)
    assert driver.errno("iommu_finalize", 0) == 0
    assert driver.errno("iommu_finalize", 0) == -EPERM
    assert register(driver) == -EPERM
    assert not driver.hyp.part(PkvmIommus).no_dma_isolation


def test_an_error_reported_with_finalize_is_kept(driver: Driver) -> None:
    assert driver.errno("iommu_finalize", -EINVAL) == 0
    assert driver.hyp.part(PkvmIommus).no_dma_isolation


def test_going_back_forgets_drivers_and_devices(driver: Driver) -> None:
    before = driver.system.snapshot()
    init(driver)
    register(driver)
    driver.system.restore(before)
    assert not driver.hyp.part(PkvmIommus).drivers
    assert driver.hyp.ownership.owner_of(MMIO) is Component.HOST
    assert init(driver)[0] == 0


def test_a_shuffled_table_is_told_by_the_names_of_its_functions(c_module) -> None:
    order = (3, 8, 0, 6, 1, 7, 2, 5, 4)
    text = DEVICES.replace(
        "static const struct pkvm_iommu_ops table = {",
        "static int x_init(void) { return 0; }\n#define F(n) static void x_##n(void) { NOTE(1); }\n"
        + "".join(f"F({name})\n" for name in MEMBERS[1:])
        + f"void *shuffled[10] = {{ {', '.join(f'x_{MEMBERS[at]}' for at in order)}, (void *)24 }};\n"
        "static const struct pkvm_iommu_ops table = {",
    ).replace("#define INSTANCE table", "#define INSTANCE shuffled")
    driver = Driver(boot("14", [c_module(el2=text, generation="14")]))
    expected = {MEMBERS[at]: 8 * slot for slot, at in enumerate(order)}
    assert ops_offsets(driver.hyp, driver.instance) == {**expected, "data_size": 72}
