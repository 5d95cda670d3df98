"""Block pools of android15's IOMMU core: pieces of the region that the host's device tree keeps for them."""

from __future__ import annotations

from errno import EBUSY, EINVAL

import pytest
from iommu_modules import DOMAINS, DOMAINS_EL1, Driver

from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_blocks import BLOCK_ORDER, BLOCK_SIZE, MAX_BLOCKS
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.kernel.devicetree.source import parse_source
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.system import boot

REGION, PIECES = 0x6000_0000, 18
TREE = f"""/ {{ #address-cells = <2>; #size-cells = <2>;
reserved-memory {{ #address-cells = <2>; #size-cells = <2>; ranges;
	iommu {{ compatible = "pkvm,cma"; reg = <0 {REGION:#x} 0 {PIECES * BLOCK_SIZE:#x}>; }}; }}; }};"""


@pytest.fixture
def driver(c_module) -> Driver:
    ko = c_module(el1=DOMAINS_EL1, el2=DOMAINS, generation="15")
    return Driver(boot("15", [ko], dtb=parse_source(TREE)))


def give(driver: Driver, number: int = 0, order: int = BLOCK_ORDER) -> int:
    """The host gives a piece; an errno."""
    return driver.errno("hyp_alloc_mgt_refill", 1, REGION + number * BLOCK_SIZE | order, 1)


def test_pages_come_from_a_piece_first_and_go_back_to_it(driver: Driver) -> None:
    assert give(driver) == 0
    driver.fill_pool()
    core = driver.system.hyp.part(Iommu)
    assert core.reclaimable == 513
    pages = [core.donate(core.pool, order, request=False) for order in (0, 2, 0)]
    assert pages == [REGION, REGION + 0x4000, REGION + 0x1000]
    # A piece of which something is taken does not go back.
    assert core.reclaimable == 1
    for pa in pages:
        core.pool_of(pa).put(pa)
    assert core.reclaimable == 513
    assert dict(core.blocks.free) == {REGION: BLOCK_ORDER}


def test_other_pages_go_to_the_common_pool(driver: Driver) -> None:
    assert give(driver, order=3) == 0
    core = driver.system.hyp.part(Iommu)
    assert (dict(core.blocks.blocks), core.pool.free_pages) == ({}, 8)
    assert driver.errno("hyp_alloc_mgt_refill", 1, REGION + 0x1000 | 1, 1) == -EINVAL


def test_there_are_sixteen_pools(driver: Driver) -> None:
    assert [give(driver, number) for number in range(MAX_BLOCKS + 1)] == [0] * MAX_BLOCKS + [-EBUSY]
    assert driver.system.host.read(REGION + MAX_BLOCKS * BLOCK_SIZE, 4).ok
    assert driver.system.host.read(REGION, 4).fault is not None


def test_unused_pieces_go_back_to_the_host(driver: Driver) -> None:
    give(driver)
    answer = driver.hypercall("hyp_alloc_mgt_reclaim", 600)
    assert answer[1] == REGION | BLOCK_ORDER
    assert driver.system.host.read(REGION, 4).ok


def test_pages_of_the_region_that_no_pool_has_wedge_the_hypervisor(driver: Driver) -> None:
    from pkvm_emu.hyp.errors import HypBug

    core = driver.system.hyp.part(Iommu)
    with pytest.raises((HypBug, HypPanic), match="waits for its own lock"):
        core.pool_of(REGION).put(REGION)


def test_the_kernel_gives_out_the_region_in_pieces(driver: Driver) -> None:
    from pkvm_emu.kernel.exports.iommu_cma import kvm_iommu_cma_alloc, kvm_iommu_cma_release

    kernel = driver.system.kernel
    pages = [kvm_iommu_cma_alloc(kernel) for _ in range(PIECES + 1)]
    physical = kernel.part(Vmemmap).physical
    assert [physical(page) for page in pages[:2]] == [REGION, REGION + BLOCK_SIZE]
    assert pages[-1] == 0
    assert kvm_iommu_cma_release(kernel, pages[3])
    assert not kvm_iommu_cma_release(kernel, pages[3])
    assert kvm_iommu_cma_alloc(kernel) == pages[3]
