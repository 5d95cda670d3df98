"""IOMMU drivers of android15 and android16: domains, mappings, memory for both, power, accesses to the registers."""

from __future__ import annotations

from errno import E2BIG, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EPERM

import pytest
from iommu_modules import (
    ALLOC,
    ATTACH,
    BY_ID,
    COMPLETE,
    DABT,
    DETACH,
    DOMAINS,
    DOMAINS_EL1,
    EMULATED,
    FREE,
    IDMAP,
    INIT,
    MAP,
    RESUME,
    SUSPEND,
    SYNC,
    TRANSLATE,
    UNMAP,
    Driver,
)

from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_domains import IommuDomains
from pkvm_emu.hyp.page_state import Component
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.system import boot

MISSING_PAGE = (1 | 3 << 8, 1 | 4096 << 32)
KNOWN, OTHER = 9, 8
READ_WRITE = 3


@pytest.fixture(params=["15", "16"])
def driver(request, c_module) -> Driver:
    """A system whose driver was started by the boot, with one page in the pool."""
    ko = c_module(el1=DOMAINS_EL1, el2=DOMAINS, generation=request.param)
    started = Driver(boot(request.param, [ko]))
    assert started.notes() == [(INIT, 0x1234) if request.param == "15" else (INIT,)]
    return started


def is_16(driver: Driver) -> bool:
    return driver.system.generation.layout == "a16"


def make(driver: Driver, domain: int = 5, kind: int = 1) -> int:
    """A domain; its hyp VA."""
    driver.fill_pool()
    assert driver.hypercall("host_iommu_alloc_domain", domain, kind) == (0, 0, 0, 0)
    ((_, address, *_),) = [call for call in driver.notes() if call[0] == ALLOC]
    return address


def test_a_domain_wants_a_page_and_says_so(driver: Driver) -> None:
    assert driver.hypercall("host_iommu_alloc_domain", 5, 1) == (0, -ENOMEM, *MISSING_PAGE)
    assert driver.notes() == []
    driver.fill_pool()
    assert driver.hypercall("host_iommu_alloc_domain", 5, 1) == (0, 0, 0, 0)
    ((kind, address, *rest),) = driver.notes()
    assert (kind, rest) == (ALLOC, [5, 1])
    assert driver.load(address) == 1 | 5 << 32
    assert driver.errno("host_iommu_alloc_domain", 5, 1) == -EINVAL


def test_freeing_forgets_the_domain(driver: Driver) -> None:
    address = make(driver)
    assert driver.errno("host_iommu_free_domain", 5) == 0
    assert driver.notes() == [(FREE, address, 5)]
    assert driver.load(address) == 0


def test_what_the_driver_refuses_is_not_allocated(driver: Driver) -> None:
    driver.fill_pool()
    driver.answers(-EPERM)
    assert driver.errno("host_iommu_alloc_domain", 5, 1) == -EPERM
    with pytest.raises(HypPanic, match="domain 5, which is not allocated"):
        driver.hypercall("host_iommu_map_pages", 5, 0, driver.page(), 4096, 1, READ_WRITE)


def test_android16_keeps_the_upper_half_of_the_domains_for_guests(driver: Driver) -> None:
    driver.fill_pool()
    assert driver.errno("host_iommu_alloc_domain", 1 << 15, 1) == (-EINVAL if is_16(driver) else 0)


def test_domain_0_is_permanent_on_android15(driver: Driver) -> None:
    make(driver, 0, 0)
    assert driver.errno("host_iommu_free_domain", 0) == (0 if is_16(driver) else -EINVAL)


def test_attaching_holds_the_domain(driver: Driver) -> None:
    address = make(driver)
    assert driver.errno("host_iommu_attach_dev", OTHER, 5, 7, 0, 2, 0x40) == -EINVAL
    assert driver.errno("host_iommu_attach_dev", KNOWN, 5, 7, 1, 2, 0x40) == 0
    attached = (ATTACH, driver.instance, 5, 7, 1, 2, *([0x40] if is_16(driver) else []))
    assert driver.notes() == [(BY_ID, OTHER), (BY_ID, KNOWN), attached]
    assert driver.load(address) & 0xFFFF == 2
    driver.answers(-EPERM)
    assert driver.errno("host_iommu_attach_dev", KNOWN, 5, 8, 1, 2, 0) == -EPERM
    driver.answers(0)
    assert driver.load(address) & 0xFFFF == 2
    driver.notes()
    assert driver.errno("host_iommu_detach_dev", KNOWN, 5, 7, 1) == 0
    assert driver.notes() == [(BY_ID, KNOWN), (DETACH, driver.instance, 5, 7, 1)]
    assert driver.errno("host_iommu_detach_dev", KNOWN, 5, 7, 1) == -EINVAL


def test_freeing_an_attached_domain_is_a_panic(driver: Driver) -> None:
    make(driver)
    driver.errno("host_iommu_attach_dev", KNOWN, 5, 7, 1, 2, 0)
    with pytest.raises(HypPanic, match="has 1 users"):
        driver.hypercall("host_iommu_free_domain", 5)


def test_mapped_pages_are_held_until_they_are_unmapped(driver: Driver) -> None:
    make(driver)
    page = driver.page()
    assert driver.hypercall("host_iommu_map_pages", 5, 0x10000, page, 4096, 1, READ_WRITE) == (0, 4096, 0, 0)
    assert driver.notes() == [(MAP, 5, 0x10000, page, 4096, 1, READ_WRITE)]
    assert driver.hyp.vmemmap.refcount(page) == 1
    assert driver.errno("host_share_hyp", page >> 12) < 0
    driver.set_room(page)
    assert driver.errno("host_iommu_unmap_pages", 5, 0x10000, 4096, 1) == 4096
    assert driver.notes() == [(UNMAP, 5, 0x10000, 4096, 1, (1 << 64) - 1), (SYNC, 5, 0x10000)]
    assert driver.hyp.vmemmap.refcount(page) == (1 if is_16(driver) else 0)


def test_what_the_driver_could_not_map_is_let_go(driver: Driver) -> None:
    make(driver)
    block = driver.system.kernel.pages.alloc_pages(1)
    assert block is not None
    driver.set_room(4096)
    assert driver.errno("host_iommu_map_pages", 5, 0x10000, block, 4096, 2, READ_WRITE) == 4096
    assert [driver.hyp.vmemmap.refcount(block + at) for at in (0, 4096)] == [1, 0]


def test_pages_of_others_cannot_be_mapped(driver: Driver) -> None:
    make(driver)
    page = driver.page()
    driver.donate(page)
    error, mapped = driver.hypercall("host_iommu_map_pages", 5, 0, page, 4096, 1, READ_WRITE)[:2]
    assert error < 0
    assert mapped == 0
    assert [call for call in driver.notes() if call[0] == MAP] == []


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ((5, 0, 0x4400_0000, 4096, 1, 1 << 6), -EOPNOTSUPP),
        ((5, -4096, 0x4400_0000, 4096, 2, 3), -E2BIG),
        ((0, 0, 0x4400_0000, 4096, 1, 3), -EINVAL),
        ((1 << 16, 0, 0x4400_0000, 4096, 1, 3), -ENOENT),
    ],
)
def test_senseless_mappings_do_not_reach_the_driver(driver: Driver, arguments: tuple[int, ...], answer: int) -> None:
    make(driver)
    assert driver.hypercall("host_iommu_map_pages", *arguments)[:2] == (answer, 0)
    assert IommuDomains(driver.hyp).map_pages(*[a & (1 << 64) - 1 for a in arguments])[0] == answer
    assert driver.notes() == []


def test_translation_is_the_drivers_but_for_the_identity_domain(driver: Driver) -> None:
    make(driver)
    assert driver.errno("host_iommu_iova_to_phys", 5, 0x5000) == 0x6000
    assert driver.errno("host_iommu_iova_to_phys", 0, 0x5000) == 0x5000
    assert driver.notes() == [(TRANSLATE, 5, 0x5000)]


@pytest.mark.parametrize("driver", ["15"], indirect=True)
def test_android15_unmaps_511_pages_at_a_time(driver: Driver) -> None:
    make(driver)
    block = driver.system.kernel.pages.alloc_pages(9)
    assert block is not None
    for _ in range(2):
        assert driver.errno("host_iommu_map_pages", 5, 0, block, 4096, 512, READ_WRITE) == 512 * 4096
    driver.notes()
    driver.set_room(block)
    assert driver.errno("host_iommu_unmap_pages", 5, 0, 4096, 512) == 512 * 4096
    calls = [(UNMAP, 5, 0, 4096, 511), (UNMAP, 5, 511 * 4096, 4096, 1)]
    assert [call[:5] for call in driver.notes() if call[0] == UNMAP] == calls
    # The driver reports what it unmaps from the start of the block: the first page twice, the last one never.
    assert [driver.hyp.vmemmap.refcount(block + at * 4096) for at in (0, 1, 510, 511)] == [0, 1, 1, 2]


@pytest.mark.parametrize("driver", ["16"], indirect=True)
def test_android16_maps_lists_entry_by_entry(driver: Driver) -> None:
    make(driver)
    kernel, ram = driver.system.kernel, driver.system.machine.ram
    entries, first, second = driver.page(), driver.page(), driver.page()
    for at, pa in ((0, first), (24, second)):
        for offset, value in ((0, pa), (8, 4096), (16, 1)):
            ram.write_u64(entries + at + offset, value)
    va = kernel.memory.linear_va(entries)
    assert driver.errno("host_iommu_map_sg", 5, 0x10000, va, 2, READ_WRITE) == 0
    assert driver.errno("host_share_hyp", entries >> 12) == 0
    assert driver.errno("host_iommu_map_sg", 5, 0x10000, va, 2, READ_WRITE) == 8192
    assert driver.notes() == [(MAP, 5, 0x10000, first, 4096, 1, 3), (MAP, 5, 0x11000, second, 4096, 1, 3)]
    assert driver.errno("host_unshare_hyp", entries >> 12) == 0


def test_the_identity_map_follows_after_a_snapshot(driver: Driver) -> None:
    identity = make(driver, 0, 0)
    assert driver.snapshot() == 0
    driver.notes()
    page = driver.page()
    driver.donate(page)
    driver.give_back(page)
    done = [(COMPLETE,), (COMPLETE, 1)] if is_16(driver) else [(), ()]
    expected = [(IDMAP, identity, page, page + 4096), done[0], (IDMAP, identity, page, page + 4096, 3), done[1]]
    assert driver.notes() == [call for call in expected if call]


def test_power_domains_wake_and_suspend_the_iommu(driver: Driver) -> None:
    assert driver.errno("host_hvc_pd", 3, 1) == -ENOENT
    assert driver.init_device() == 0
    assert driver.errno("host_hvc_pd", 3, 0) == 0
    driver.answers(-EPERM)
    assert driver.errno("host_hvc_pd", 3, 1) == 0
    driver.answers(0)
    assert driver.errno("host_hvc_pd", 3, 1) == 0
    # android15 says "on" before it asks the driver, and takes it back; android16 says so afterwards.
    off = [1] if is_16(driver) else []
    assert driver.notes() == [
        (SUSPEND, driver.instance, 1),
        (RESUME, driver.instance, *off),
        (RESUME, driver.instance, *off),
    ]
    rules = driver.hyp.part(Iommu).rules
    assert driver.load(driver.instance + rules.power_is_off & ~7) >> 8 * (rules.power_is_off & 7) & 0xFF == 0


def test_the_driver_emulates_accesses_to_mmio(driver: Driver) -> None:
    driver.donate(0x1800_0000)
    assert driver.system.host.read(0x1800_0024, 4).value == EMULATED
    assert driver.notes() == [(DABT, 0x1800_0024, 0x24)]
    driver.answers(-EPERM)
    assert driver.system.host.read(0x1800_0024, 4).fault is not None
    assert driver.notes() == [(DABT, 0x1800_0024, 0x24)]


def test_ram_is_none_of_the_drivers_business(driver: Driver) -> None:
    page = driver.page()
    driver.donate(page)
    assert driver.system.host.read(page).fault is not None
    assert driver.notes() == []


def test_the_driver_hears_of_pages_given_to_a_virtual_machine(driver: Driver) -> None:
    identity = make(driver, 0, 0)
    driver.snapshot()
    driver.notes()
    driver.system.create_vm()
    changes = [call for call in driver.notes() if call[0] == IDMAP]
    assert changes
    assert all(call[1] == identity and len(call) == 4 for call in changes)
    assert {driver.hyp.ownership.owner_of(call[2]) for call in changes} == {Component.HYP, Component.GUEST}
