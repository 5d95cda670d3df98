"""IOMMUs and devices of protected guests: what the host puts behind them, and the guests' own calls (android16)."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EINVAL, ENOENT

import pytest
from iommu_modules import (
    ALLOC,
    ATTACH,
    BLOCK,
    BY_ID,
    DETACH,
    DOMAINS,
    DOMAINS_EL1,
    FREE,
    MAP,
    RESET,
    SYNC,
    TOKEN,
    UNMAP,
    Driver,
)

from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.hyp.pviommu import MAX_ENTRIES, MAX_PVIOMMUS, Route
from pkvm_emu.system import boot
from pkvm_emu.vm import VirtualMachine

IOMMU, SID = 9, 0x31
#: What the guest sees of it.
PVIOMMU, VSID = 2, 7
REGISTERS = 0x1900_0000
OP, DMA, MMIO = 0xC600_003E, 0xC600_003D, 0xC600_003F
ATTACH_DEV, DETACH_DEV, ALLOC_DOMAIN, FREE_DOMAIN, MAP_PAGES, UNMAP_PAGES = range(6)
FIRST = 0x8000
INVALID = (1 << 64) - 3
IPA, IOVA = 0x8000_0000, 0x10_0000


@pytest.fixture
def driver(c_module) -> Driver:
    ko = c_module(el1=DOMAINS_EL1, el2=DOMAINS, generation="16")
    started = Driver(boot("16", [ko]))
    started.notes()
    return started


@pytest.fixture
def vm(driver: Driver) -> VirtualMachine:
    return driver.system.create_vm(iommus={PVIOMMU: [Route(VSID, IOMMU, SID)]})


def op(vm: VirtualMachine, *arguments: int) -> tuple[int, ...]:
    """A ``PVIOMMU_OP`` of the guest: x0 and x1."""
    return vm.hvc(OP, *arguments).registers[:2]


def test_the_host_puts_endpoints_behind_iommus_until_the_vm_is_made(driver: Driver) -> None:
    kvm = 0xFFFF_FF80_0000_1000
    assert driver.errno("pviommu_attach", 0, PVIOMMU) == -EINVAL
    assert driver.errno("pviommu_add_vsid", kvm, PVIOMMU, IOMMU, SID, VSID) == -ENOENT
    assert driver.errno("pviommu_attach", kvm, PVIOMMU) == 0
    for vsid in range(MAX_ENTRIES):
        assert driver.errno("pviommu_add_vsid", kvm, PVIOMMU, IOMMU, SID, vsid) == 0
        if not vsid:
            assert driver.errno("pviommu_add_vsid", kvm, PVIOMMU, IOMMU, SID + 1, vsid) == -EEXIST
    assert driver.errno("pviommu_add_vsid", kvm, PVIOMMU, IOMMU, SID, MAX_ENTRIES) == -EBUSY
    for _ in range(MAX_PVIOMMUS - 1):
        assert driver.errno("pviommu_attach", kvm, PVIOMMU) == 0
    assert driver.errno("pviommu_attach", kvm, PVIOMMU) == -EBUSY


def test_a_domain_of_a_guest_lives_in_memory_that_its_host_gives(driver: Driver, vm: VirtualMachine) -> None:
    result = vm.hvc(OP, ALLOC_DOMAIN)
    assert result.registers[:2] == (0, FIRST)
    # The hypervisor lacked memory of its own, and a page for the table of domains.
    assert result.exited
    assert [call[::2] for call in driver.notes() if call[0] == ALLOC] == [(ALLOC, FIRST)]
    assert op(vm, ATTACH_DEV, PVIOMMU, VSID, 1, FIRST, 4) == (0, 0)
    assert driver.notes() == [(BY_ID, IOMMU), (ATTACH, driver.instance, FIRST, SID, 1, 4)]
    assert op(vm, ATTACH_DEV, PVIOMMU, VSID + 1, 1, FIRST, 4)[0] == INVALID
    assert driver.notes() == []
    assert op(vm, DETACH_DEV, PVIOMMU, VSID, 1, FIRST) == (0, 0)
    assert driver.notes() == [(BY_ID, IOMMU), (DETACH, driver.instance, FIRST, SID, 1)]
    assert op(vm, FREE_DOMAIN, FIRST) == (0, 0)
    assert [call[0] for call in driver.notes()] == [FREE]


def test_only_one_domain_of_all_guests_exists_at_a_time(vm: VirtualMachine) -> None:
    """The original never notes which ids it has given out."""
    assert op(vm, ALLOC_DOMAIN) == (0, FIRST)
    assert op(vm, ALLOC_DOMAIN)[0] == INVALID


def test_the_guests_memory_is_mapped_and_held(driver: Driver, vm: VirtualMachine) -> None:
    op(vm, ALLOC_DOMAIN)
    driver.notes()
    pages = [driver.page(), driver.page()]
    for number, pa in enumerate(pages):
        assert vm.donate(pa, IPA + 0x1000 * number) == 0
    assert op(vm, MAP_PAGES, FIRST, IOVA, IPA, 0x2000, 3) == (0, 0x2000)
    assert driver.notes() == [
        (MAP, FIRST, IOVA, pages[0], 0x1000, 1, 3),
        (MAP, FIRST, IOVA + 0x1000, pages[1], 0x1000, 1, 3),
    ]
    assert [driver.system.hyp.vmemmap.refcount(pa) for pa in pages] == [1, 1]
    assert op(vm, UNMAP_PAGES, FIRST, IOVA, 0x2000) == (0, 0x2000)
    assert [call[0] for call in driver.notes()] == [UNMAP, SYNC]


def test_memory_that_the_guest_does_not_have_yet_is_asked_for(driver: Driver, vm: VirtualMachine) -> None:
    op(vm, ALLOC_DOMAIN)
    assert op(vm, MAP_PAGES, FIRST, IOVA, IPA, 0x1000, 3) == (0, 0)
    # The guest sees that nothing was mapped and calls again; its host has given it the page.
    assert vm.pa_of(IPA) is not None
    assert op(vm, MAP_PAGES, FIRST, IOVA, IPA, 0x1000, 3) == (0, 0x1000)


def test_what_a_guest_shares_it_cannot_map(driver: Driver, vm: VirtualMachine) -> None:
    op(vm, ALLOC_DOMAIN)
    vm.donate(driver.page(), IPA)
    assert vm.share(IPA) == 1
    assert op(vm, MAP_PAGES, FIRST, IOVA, IPA, 0x1000, 3) == (INVALID, 0)
    assert op(vm, MAP_PAGES, FIRST, IOVA + 1, IPA, 0x1000, 3)[0] == INVALID
    assert op(vm, 6) == ((1 << 64) - 1, 0)


def test_the_host_cannot_use_a_guests_domain(driver: Driver, vm: VirtualMachine) -> None:
    op(vm, ALLOC_DOMAIN)
    driver.notes()
    assert driver.errno("host_iommu_attach_dev", IOMMU, FIRST, SID, 0, 0, 0) == -EINVAL
    assert driver.hypercall("host_iommu_map_pages", FIRST, IOVA, driver.page(), 0x1000, 1, 3)[:2] == (-ENOENT, 0)
    assert driver.notes() == [(BY_ID, IOMMU)]


def test_a_device_is_reset_and_cut_off_on_its_way_to_the_guest_and_back(driver: Driver, vm: VirtualMachine) -> None:
    driver.system.mmio.map(REGISTERS, 0x2000, "/device")
    devices = driver.system.hyp.part(Devices)
    for number in range(2):
        devices.add((REGISTERS + 0x1000 * number, 0x1000), iommus=[(IOMMU, SID + number)], group=4)
        assert driver.on_reset(REGISTERS + 0x1000 * number, 0xC0 + number) == 0
    assert vm.assign(REGISTERS, IPA) == 0
    there = [(RESET, 0xC0, 1), (BY_ID, IOMMU), (BLOCK, driver.instance, SID, 1)]
    there += [(RESET, 0xC1, 1), (BY_ID, IOMMU), (BLOCK, driver.instance, SID + 1, 1)]
    assert driver.notes() == there
    assert dict(devices.owners) == {0: vm.handle, 1: vm.handle}
    assert vm.hvc(MMIO, IPA).registers[:2] == (0, REGISTERS)
    assert vm.hvc(MMIO, IPA + 0x1000).registers[0] == INVALID
    assert vm.hvc(DMA, PVIOMMU, VSID).registers[:3] == (0, 0x10000 + IOMMU, SID)
    assert driver.notes() == [(TOKEN, IOMMU)]
    # The host cannot attach what the guest has.
    assert driver.errno("host_iommu_attach_dev", IOMMU, 1, SID, 0, 0, 0) == -1
    assert "belongs to VM" in driver.system.explain()[0].rule
    vm.destroy()
    back = [call for call in driver.notes() if call[0] in (RESET, BLOCK)]
    assert back == [(RESET, 0xC0), (BLOCK, driver.instance, SID), (RESET, 0xC1), (BLOCK, driver.instance, SID + 1)]
    assert not devices.owners
    assert driver.system.host.read(REGISTERS, 4).ok


def test_a_device_that_the_driver_cannot_cut_off_is_a_panic(driver: Driver, vm: VirtualMachine) -> None:
    driver.system.mmio.map(REGISTERS, 0x1000, "/device")
    driver.system.hyp.part(Devices).add((REGISTERS, 0x1000), iommus=[(IOMMU, SID)])
    driver.on_reset(REGISTERS, 0)
    driver.answers(-EBUSY)
    with pytest.raises(HypPanic, match="dev_block_dma returns -16"):
        vm.assign(REGISTERS, IPA)


def test_a_dying_guest_leaves_no_domain_behind(driver: Driver, vm: VirtualMachine) -> None:
    op(vm, ALLOC_DOMAIN)
    op(vm, ATTACH_DEV, PVIOMMU, VSID, 0, FIRST, 0)
    driver.notes()
    vm.destroy()
    assert [call[0] for call in driver.notes()] == [FREE]
    assert driver.system.pages.check() == []
    another = driver.system.create_vm(iommus={PVIOMMU: [Route(VSID, IOMMU, SID)]})
    assert op(another, ALLOC_DOMAIN) == (0, FIRST)


def test_a_call_with_leftovers_in_its_registers_wedges_the_hypervisor(driver: Driver, vm: VirtualMachine) -> None:
    """The original releases a lock that it has not taken."""
    op(vm, ALLOC_DOMAIN)
    op(vm, FREE_DOMAIN, FIRST)
    assert op(vm, ALLOC_DOMAIN, 1)[0] == INVALID
    with pytest.raises(HypPanic, match="waits for it for ever"):
        op(vm, ALLOC_DOMAIN)
