"""What an IOMMU driver gets from the ops, and what it is told."""

from __future__ import annotations

from errno import E2BIG, EBUSY, ENODEV, EOPNOTSUPP

import pytest

from pkvm_emu.hyp.host_requests import HostRequests
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.panic import HypPanic

IOMMU = 1
INIT, SYNC, IDMAP, COMPLETE, RESUME = 1, 2, 3, 4, 5
WITH_IOMMU = pytest.mark.parametrize("generation", ["15", "16"])
_U64 = (1 << 64) - 1


def start_driver(ops, atomic: int = 0) -> None:
    """Initialise the module's driver before deprivilege, as a kernel does."""
    root = ops.page(2)
    ops.hyp.part(Iommu).domains_root = ops.hyp.stage1.va_of(root)
    head, count = 0, 0
    for _ in range(atomic):
        pa = ops.page()
        ops.system.machine.ram.write_u64(pa, head)
        head, count = pa, count + 1
    assert ops.hypercall("iommu_init", ops.driver, head, count, 0x1234)[:2] == (0, 0)


@WITH_IOMMU
def test_the_driver_is_initialised_at_el2(caller, generation: str) -> None:
    ops = caller(generation, deprivilege=False)
    start_driver(ops)
    assert ops.notes() == [(INIT, 0x1234 if generation == "15" else 0, 0, 0)]


def test_a_driver_without_mandatory_functions_is_refused(caller) -> None:
    ops = caller(deprivilege=False)
    ops.store(ops.driver + 8, 0)
    assert ops.hypercall("iommu_init", ops.driver, 0, 0)[1] == -ENODEV & _U64


@WITH_IOMMU
def test_pages_come_from_the_pool_that_the_host_fills(caller, generation: str) -> None:
    ops = caller(generation, deprivilege=False)
    start_driver(ops)
    request = 1 if generation == "15" else 0
    assert ops.op("iommu_donate_pages", 0, request) == 0
    assert ops.hyp.part(HostRequests).take(0) == (1 | 3 << 8, 1 | 4096 << 32)
    (pa,) = ops.give(IOMMU, [1])
    va = ops.op("iommu_donate_pages", 1, 0)
    assert va == ops.hyp.stage1.va_of(pa)
    ops.store(va + 4096, 0x55)
    ops.op("iommu_reclaim_pages", va, 1)
    assert ops.system.machine.ram.read_u64(pa + 4096) == 0
    assert ops.op("iommu_donate_pages", 0, 0) == va


def test_android15_requests_only_when_asked(caller) -> None:
    ops = caller("15", deprivilege=False)
    start_driver(ops)
    assert ops.op("iommu_donate_pages", 0, 0) == 0
    assert ops.hyp.part(HostRequests).pending(0) is None
    ops.store(ops.buffer, 1)
    ops.store(ops.buffer + 8, 3 | 7 << 32)
    assert ops.int("iommu_request", ops.buffer) == 0
    assert ops.int("iommu_request", ops.buffer) == -EBUSY


def test_non_cacheable_pages_are_cacheable_again_afterwards(caller) -> None:
    ops = caller(deprivilege=False)
    start_driver(ops)
    ops.give(IOMMU, [0])

    def memory_type(va: int) -> int:
        return ops.hyp.stage1.leaf(va).descriptor >> 2 & 7

    normal, normal_nc = 0, 2
    va = ops.op("iommu_donate_pages", 0, 1)
    assert memory_type(va) == normal_nc
    ops.op("iommu_reclaim_pages", va, 0)
    assert memory_type(va) == normal


@WITH_IOMMU
def test_the_atomic_pool_is_what_the_driver_brought(caller, generation: str) -> None:
    ops = caller(generation, deprivilege=False)
    start_driver(ops, atomic=2)
    first, second = ops.op("iommu_donate_pages_atomic", 0), ops.op("iommu_donate_pages_atomic", 0)
    assert first
    assert second
    assert ops.op("iommu_donate_pages_atomic", 0) == 0
    ops.op("iommu_reclaim_pages_atomic", first, 0)
    assert ops.op("iommu_donate_pages_atomic", 0) == first


@WITH_IOMMU
def test_a_snapshot_replays_the_host_stage2_and_changes_follow(caller, generation: str) -> None:
    ops = caller(generation, deprivilege=False)
    start_driver(ops)
    ops.notes()
    assert ops.int("iommu_snapshot_host_stage2", 0) == 0
    seen = ops.notes()
    assert {note[0] for note in seen} == {IDMAP}
    ends = [(start, end) for _, start, end, _ in seen]
    assert ends == sorted(ends)
    ram = ops.system.machine.ram
    assert all((prot & 16 == 0) == (start in ram) for _, start, _, prot in seen)
    pa = ops.page()
    assert ops.int("host_donate_hyp", pa >> 12, 1, 0) == 0
    assert (IDMAP, pa, pa + 4096, 0) in ops.notes()
    assert ops.int("hyp_donate_host", pa >> 12, 1) == 0
    assert (IDMAP, pa, pa + 4096, 3) in ops.notes()


@WITH_IOMMU
def test_gathering_flushes_what_does_not_fit(caller, generation: str) -> None:
    ops = caller(generation, deprivilege=False)
    start_driver(ops)
    ops.notes()
    gather = ops.buffer
    ops.store(gather, _U64)
    for at in range(8, 64, 8):
        ops.store(gather + at, 0)
    for iova in (0x10000, 0x11000):
        ops.op("iommu_iotlb_gather_add_page", 0xD0, gather, iova, 0x1000)
    assert ops.notes() == []
    assert [ops.load(gather + at) for at in (0, 8, 16)] == [0x10000, 0x11FFF, 0x1000]
    ops.op("iommu_iotlb_gather_add_page", 0xD0, gather, 0x90000, 0x1000)
    assert ops.notes() == [(SYNC, 0xD0, 0x10000, 0)]
    assert [ops.load(gather + at) for at in (0, 8)] == [0x90000, 0x90FFF]


def test_power_domains(caller) -> None:
    ops = caller()
    for word in range(12):
        ops.store(ops.buffer + 8 * word, 0)
    ops.store(ops.buffer, 0xFFFF_FFFF)
    assert ops.int("iommu_init_device", ops.buffer) == 0
    assert ops.load(ops.buffer) == 0
    ops.store(ops.buffer + 8, 1)
    ops.store(ops.buffer + 16, 32)
    assert ops.int("iommu_init_device", ops.buffer) == -E2BIG
    ops.store(ops.buffer + 16, 3)
    assert ops.int("iommu_init_device", ops.buffer) == 0
    ops.store(ops.buffer + 8, 7)
    assert ops.int("iommu_init_device", ops.buffer) == -EOPNOTSUPP


def test_powering_a_domain_calls_its_driver(caller) -> None:
    ops = caller(deprivilege=False)
    start_driver(ops)
    ops.notes()
    for word in range(12):
        ops.store(ops.buffer + 8 * word, 0)
    ops.store(ops.buffer + 8, 1)
    assert ops.int("iommu_init_device", ops.buffer) == 0
    assert ops.hypercall("host_hvc_pd", 0, 0)[1] == 0
    assert ops.load(ops.buffer + 56) == 1
    assert ops.hypercall("host_hvc_pd", 0, 1)[1] == 0
    assert ops.notes() == [(RESUME, ops.buffer, 0, 0)]
    assert ops.load(ops.buffer + 56) == 0


def test_a_driver_function_of_another_type_is_a_kcfi_panic(caller) -> None:
    ops = caller(deprivilege=False)
    start_driver(ops)
    ops.store(ops.driver + 9 * 8, ops.function)
    gather = ops.buffer
    ops.store(gather + 16, 0x2000)
    with pytest.raises(HypPanic, match="kCFI failure at EL2") as caught:
        ops.op("iommu_iotlb_gather_add_page", 0, gather, 0x1000, 0x1000)
    assert caught.value.state.is_cfi_failure


def test_the_unmap_cache_drops_its_dma_references(caller) -> None:
    ops = caller("15")
    page = ops.page()
    ops.hyp.ownership.use_dma(page, 4096)
    cache = ops.page(2)
    assert ops.int("host_donate_hyp", cache >> 12, 2, 0) == 0
    va = ops.hyp.stage1.va_of(cache)
    for at, value in ((0, 1), (8, page), (8 + 511 * 8, 4096)):
        ops.store(va + at, value)
    ops.op("iommu_flush_unmap_cache", va)
    assert ops.load(va) & 0xFFFF == 0
    assert ops.hyp.vmemmap.refcount(page) == 0
