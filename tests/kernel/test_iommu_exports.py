"""The kernel's side of IOMMU drivers at EL2: the boot, and the exports that ask EL2 again after a top-up."""

from __future__ import annotations

import sys
from errno import E2BIG, EBUSY, EINVAL, ENODEV, ENOMEM, EPERM
from pathlib import Path

import pytest

from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_pkvm import PkvmIommus
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.iommu import IommuDrivers
from pkvm_emu.kernel.registry import find_function
from pkvm_emu.system import System, boot

sys.path.insert(0, str(Path(__file__).parents[1] / "hyp"))
from iommu_modules import (
    ALLOC,
    ATTACH,
    DEVICES,
    DOMAINS,
    DOMAINS_EL1,
    INIT,
    MAP,
    RESUME,
    SUSPEND,
    VALIDATE,
    Driver,
)

DOMAIN_GENERATIONS = ("15", "16")
#: A driver that wants one page for each domain and each mapping.
HUNGRY = DOMAINS.replace("page_order;", "page_order = 1;")


def export(system: System, name: str, *args: int) -> int:
    """Call an exported function as the kernel's own code would; its result."""
    function = find_function(name)
    assert function is not None
    result = function.function(system.kernel, *args)
    return result[0] if isinstance(result, tuple) else result


@pytest.fixture(params=DOMAIN_GENERATIONS)
def driver(request, c_module) -> Driver:
    return Driver(boot(request.param, [c_module(el1=DOMAINS_EL1, el2=DOMAINS, generation=request.param)]))


@pytest.fixture
def hungry(c_module) -> Driver:
    return Driver(boot("16", [c_module(el1=DOMAINS_EL1, el2=HUNGRY)]))


@pytest.mark.parametrize(("generation", "text"), [("15", "with no IOMMU driver"), ("16", "without an IOMMU driver")])
def test_a_boot_without_a_driver_says_so(generation: str, text: str) -> None:
    dmesg = boot(generation).dmesg
    assert f"kvm [1]: pKVM enabled {text}, do not run confidential workloads in virtual machines\n" in dmesg
    assert f"Failed to init KVM IOMMU driver: {-ENODEV}" in dmesg.splitlines()[4]


def test_android14_does_not_look_for_one() -> None:
    assert "IOMMU" not in boot("14").dmesg


def test_a_registered_driver_is_started_in_silence(driver: Driver) -> None:
    assert driver.notes()[0][0] == INIT
    assert "IOMMU driver" not in driver.system.dmesg
    assert driver.hyp.part(Iommu).atomic_pool.free_pages == 3


def test_what_its_start_returns_is_in_the_log(c_module) -> None:
    ko = c_module(el1=DOMAINS_EL1.replace("static int result;", "static int result = -16;"), el2=DOMAINS)
    system = boot("16", [ko])
    assert f"Failed to init KVM IOMMU driver: {-EBUSY}" in system.dmesg
    assert "without an IOMMU driver" not in system.dmesg
    assert not system.hyp.part(Iommu).ops


def test_there_is_one_driver(driver: Driver) -> None:
    first = driver.system.kernel.part(IommuDrivers).driver
    assert export(driver.system, "kvm_iommu_register_driver", first + 8) == -EBUSY
    assert driver.system.kernel.part(IommuDrivers).driver == first


def test_no_driver_at_all_is_an_error_of_its_module() -> None:
    late = boot("16")
    assert export(late, "kvm_iommu_register_driver", 0) == -EINVAL
    assert "W" in late.kernel.tainted
    with pytest.raises(KernelOops, match="BUG"):
        export(boot("15"), "kvm_iommu_register_driver", 0)


def test_topping_a_memcache_up_links_blocks(driver: Driver) -> None:
    kernel = driver.system.kernel
    cache = kernel.memory.linear_va(driver.page())
    assert export(driver.system, "topup_hyp_memcache", cache, 2, 1) == 0
    head, count = (kernel.memory.read_u64(cache + at) for at in (0, 8))
    second = kernel.machine.ram.read_u64(head & ~0xFFF)
    assert count == 2
    assert (head & 0xFFF, second & 0xFFF) == (1, 1)
    assert kernel.machine.ram.read_u64(second & ~0xFFF) == 0
    assert bool(kernel.memory.read_u64(cache + 24)) == (kernel.generation.layout == "a16")
    assert export(driver.system, "topup_hyp_memcache", cache, 2, 13) == -E2BIG


def test_a_driver_gets_the_memory_that_it_asks_for(hungry: Driver) -> None:
    assert export(hungry.system, "kvm_iommu_alloc_domain", 5, 1) == 0
    # First a page for the table of domains, then one for the driver: it is asked twice.
    assert [call[0] for call in hungry.notes()] == [INIT, ALLOC, ALLOC]
    kernel = hungry.system.kernel
    total = kernel.memory.linear_va(hungry.page())
    page = hungry.page()
    assert export(hungry.system, "kvm_iommu_map_pages", 5, 0x10000, page, 4096, 1, 3, 0xCC0, total) == 0
    assert kernel.memory.read_u64(total) == 4096
    assert [call[:4] for call in hungry.notes()] == [(MAP, 5, 0x10000, page)] * 2


def test_mapping_goes_on_where_the_driver_stopped(driver: Driver) -> None:
    if driver.system.generation.layout == "a15":
        driver.fill_pool()
        assert driver.errno("host_iommu_alloc_domain", 5, 1) == 0
    else:
        assert export(driver.system, "kvm_iommu_alloc_domain", 5, 1) == 0
    kernel = driver.system.kernel
    total, block = kernel.memory.linear_va(driver.page()), kernel.pages.alloc_pages(1)
    driver.set_room(4096)
    driver.notes()
    assert block is not None
    # It mapped something and wants no memory: the kernel gives up.
    assert export(driver.system, "kvm_iommu_map_pages", 5, 0, block, 4096, 2, 3, 0xCC0, total) == -EINVAL
    assert kernel.memory.read_u64(total) == 4096
    assert len(driver.notes()) == 1


def test_attach_and_detach_go_through(hungry: Driver) -> None:
    export(hungry.system, "kvm_iommu_alloc_domain", 5, 1)
    hungry.notes()
    assert export(hungry.system, "kvm_iommu_attach_dev", 9, 5, 7, 0, 2, 0) == 0
    assert (ATTACH, hungry.instance, 5, 7, 0, 2) in hungry.notes()
    assert export(hungry.system, "kvm_iommu_detach_dev", 9, 5, 7, 0) == 0
    assert export(hungry.system, "kvm_iommu_free_domain", 5) == 0


def test_a_list_is_shared_mapped_and_used_up(driver: Driver) -> None:
    if driver.system.generation.layout != "a16":
        assert "host_iommu_map_sg" not in driver.system.generation.hypercalls
        return
    system, kernel = driver.system, driver.system.kernel
    export(system, "kvm_iommu_alloc_domain", 5, 1)
    entries, target = driver.page(), driver.page()
    for offset, value in ((0, target), (8, 4096), (16, 1)):
        kernel.machine.ram.write_u64(entries + offset, value)
    va = kernel.memory.linear_va(entries)
    assert export(system, "kvm_iommu_share_hyp_sg", va, 1) == 0
    assert export(system, "kvm_iommu_map_sg", 5, va, 0x10000, 1, 3, 0xCC0) == 4096
    assert export(system, "kvm_iommu_unshare_hyp_sg", va, 1) == 0
    assert export(system, "kvm_iommu_iova_to_phys", 5, 0x10000) == 0x11000
    assert export(system, "kvm_iommu_unmap_pages", 5, 0x10000, 4096, 1) == 4096


def test_power_goes_to_the_domain_that_the_driver_names(driver: Driver) -> None:
    assert driver.init_device() == 0
    driver.notes()
    device = driver.system.kernel.memory.linear_va(driver.page())
    assert export(driver.system, "pkvm_iommu_suspend", device) == 0
    assert export(driver.system, "pkvm_iommu_resume", device) == 0
    assert [call[:2] for call in driver.notes()] == [(SUSPEND, driver.instance), (RESUME, driver.instance)]


def test_android14_gives_a_page_when_it_is_asked_for_one(c_module) -> None:
    driver = Driver(boot("14", [c_module(el2=DEVICES, generation="14")]))
    kernel = driver.system.kernel
    page = driver.page()
    assert driver.errno("host_share_hyp", page >> 12) == 0
    assert export(driver.system, "pkvm_iommu_driver_init", driver.address, kernel.memory.linear_va(page), 8) == 0
    driver.notes()
    first, second = 0xFFFF_FF80_0010_0000, 0xFFFF_FF80_0020_0000
    assert export(driver.system, "pkvm_iommu_register", first, driver.address, 0x1800_0000, 0x1000, 0, 0) == 0
    assert export(driver.system, "pkvm_iommu_register", second, driver.address, 0x1801_0000, 0x1000, first, 1) == 0
    assert [call[2] for call in driver.notes() if call[0] == VALIDATE] == [first, second]
    one, two = driver.hyp.part(PkvmIommus).devices
    assert two - one == 104 + 24
    assert export(driver.system, "pkvm_iommu_resume", first) == 0
    assert export(driver.system, "pkvm_iommu_suspend", first) == 0
    assert [call[:2] for call in driver.notes()][-2:] == [(RESUME, first), (SUSPEND, first)]
    assert export(driver.system, "pkvm_iommu_finalize", 0) == 0
    assert export(driver.system, "pkvm_iommu_register", second, driver.address, 0x1802_0000, 0x1000, 0, 0) == -EPERM


def test_out_of_memory_is_said(hungry: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(hungry.system.kernel.pages), "alloc_pages", lambda *_, **__: None)
    assert export(hungry.system, "kvm_iommu_alloc_domain", 5, 1) == -ENOMEM
