"""Library objects: idr, ida, per-CPU memory, queues, scatter lists, DMA, wakeup sources, hardened copies."""

from __future__ import annotations

import struct

import pytest
from exports_host import Host

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.exports.wakeup import WakeupSources
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.fs import MemoryFile
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vmemmap import Vmemmap

GFP = 0xCC0


def test_idr_gives_the_smallest_free_number(host: Host) -> None:
    idr = host.buffer(24)
    assert [host.s32("idr_alloc", idr, value, 1, 4, GFP) for value in (10, 20, 30, 40)] == [1, 2, 3, -28]
    assert host.call("idr_find", idr, 2) == 20
    assert host.u64(idr + 8) != 0
    assert host.call("idr_remove", idr, 2) == 20
    assert (host.call("idr_find", idr, 2), host.call("idr_remove", idr, 2)) == (0, 0)
    assert host.s32("idr_alloc", idr, 50, 0, 0, GFP) == 0
    assert host.s64("idr_replace", idr, 60, 7) == -2
    place = host.put(struct.pack("<I", 2))
    assert host.call("idr_get_next", idr, place) == 30
    host.call("idr_destroy", idr)
    assert (host.call("idr_find", idr, 1), host.u64(idr + 8)) == (0, 0)
    assert host.s32("idr_alloc", idr, 1, (1 << 64) - 1, 0, GFP) == -22


def test_cyclic_numbers_go_on(host: Host) -> None:
    idr = host.buffer(24)
    first = host.s32("idr_alloc_cyclic", idr, 1, 0, 3, GFP)
    host.call("idr_remove", idr, first)
    assert [host.s32("idr_alloc_cyclic", idr, 1, 0, 3, GFP) for _ in range(4)] == [1, 2, 0, -28]


def test_ida_and_a_free_too_many(host: Host) -> None:
    ida = host.buffer(16)
    assert [host.s32("ida_alloc_range", ida, 0, 1, GFP) for _ in range(3)] == [0, 1, -28]
    host.call("ida_free", ida, 0)
    assert host.s32("ida_alloc_range", ida, 0, 1, GFP) == 0
    host.call("ida_free", ida, 9)
    assert "ida_free called for id=9 which is not allocated." in host.log


def test_percpu_memory_is_zero_and_apart(host: Host) -> None:
    first, second = (host.call("pcpu_alloc_noprof", 24, 16, 0, GFP) for _ in range(2))
    assert abs(first - second) >= 24
    assert first % 16 == 0
    assert host.read(first, 24) == bytes(24)
    host.call("free_percpu", first)
    assert host.call("pcpu_alloc_noprof", 24, 16, 0, GFP) == first
    assert host.call("__alloc_percpu", 1 << 20, 8) == 0
    with pytest.raises(ModuleError, match="free_percpu"):
        host.call("free_percpu", first + 8)


def test_a_pool_of_elements_has_a_reserve(host: Host) -> None:
    functions = [host.kernel.symbols.resolve(name) for name in ("mempool_kmalloc", "mempool_kfree")]
    live = len(host.kernel.part(Slab).live)
    pool = host.call("mempool_create_node_noprof", 2, *functions, 100, GFP, 0)
    assert struct.unpack("<II", host.read(pool + 4, 8)) == (2, 2)
    huge = host.kernel.symbols.resolve("mempool_alloc_pages")
    host.kernel.memory.write_u64(pool + 32, huge)
    reserve = [host.call("mempool_alloc_noprof", pool, 0) for _ in range(3)]
    assert all(reserve[:2])
    assert reserve[2] == 0
    host.call("mempool_free", reserve[0], pool)
    assert struct.unpack("<II", host.read(pool + 4, 8)) == (2, 1)
    host.kernel.memory.write_u64(pool + 32, functions[0])
    assert host.s32("mempool_resize", pool, 4) == 0
    host.call("mempool_free", reserve[1], pool)
    host.call("mempool_destroy", pool)
    assert len(host.kernel.part(Slab).live) == live


def test_memory_of_a_device_in_other_sizes(host: Host) -> None:
    device = host.buffer(1024)
    pages = host.call("devm_get_free_pages", device, GFP, 1)
    assert pages % PAGE_SIZE == 0
    host.call("devm_free_pages", device, pages)
    host.call("devm_free_pages", device, pages)
    assert "WARNING" in host.log
    memory = host.call("devm_kmalloc", device, 16, GFP)
    host.kernel.memory.write(memory, b"0123456789abcdef")
    larger = host.call("devm_krealloc", device, memory, 5000, GFP)
    assert host.read(larger, 16) == b"0123456789abcdef"
    with pytest.raises(ModuleError, match="no memory of the device"):
        host.call("devm_krealloc", device, memory + 8, 10, GFP)


def test_a_queue_wraps_around(host: Host) -> None:
    fifo = host.buffer(24)
    assert host.s32("__kfifo_alloc", fifo, 6, 2, GFP) == 0
    assert host.call("__kfifo_in", fifo, host.put(b"aabbccddee"), 5) == 5
    out = host.buffer(32)
    assert host.call("__kfifo_out", fifo, out, 3) == 3
    assert host.read(out, 6) == b"aabbcc"
    assert host.call("__kfifo_in", fifo, host.put(b"11223344556677"), 7) == 6
    assert host.call("__kfifo_out", fifo, out, 20) == 8
    assert host.read(out, 16) == b"ddee112233445566"
    host.call("__kfifo_free", fifo)
    assert host.s32("__kfifo_alloc", fifo, 1, 2, GFP) == -22


def test_scatter_lists_and_their_copies(host: Host) -> None:
    table = host.buffer(16)
    assert host.s32("sg_alloc_table", table, 0, GFP) == -22
    pa = host.kernel.pages.alloc_pages(2, zero=True)
    other = host.kernel.pages.alloc_pages(0, zero=True)
    assert pa is not None
    assert other is not None
    pages = [host.kernel.part(Vmemmap).page(at) for at in (pa, pa + PAGE_SIZE, other)]
    array = host.put(struct.pack("<3Q", *pages))
    size = 3 * PAGE_SIZE - 100
    assert host.s32("sg_alloc_table_from_pages_segment", table, array, 3, 100, size, 0xFFFF_FFFF, GFP) == 0
    first, entries = host.u64(table), host.u64(table + 8) & 0xFFFF_FFFF
    assert entries == 2
    second = host.call("sg_next", first)
    assert (host.call("sg_next", second), host.call("sg_nents", first)) == (0, 2)
    data = bytes(range(256)) * 40
    assert host.call("sg_copy_from_buffer", first, 2, host.put(data), len(data)) == len(data)
    assert host.kernel.machine.ram.read(pa + 100, 200) == data[:200]
    assert host.kernel.machine.ram.read(other, 64) == data[2 * PAGE_SIZE - 100 :][:64]
    out = host.buffer(100)
    assert host.call("sg_pcopy_to_buffer", first, 2, out, 100, 8000) == 100
    assert host.read(out, 100) == data[8000:8100]
    host.call("sg_free_table", table)
    assert host.u64(table) == 0


def test_coherent_memory_has_its_physical_address(host: Host) -> None:
    handle = host.buffer(8)
    device = host.buffer(1024)
    address = host.call("dma_alloc_attrs", device, 5000, handle, GFP, 0)
    assert host.u64(handle) == host.kernel.memory.linear_pa(address)
    assert host.read(address, 5000) == bytes(5000)
    page = host.kernel.part(Vmemmap).page(host.u64(handle))
    assert host.call("dma_map_page_attrs", device, page, 8, 16, 1, 0) == host.u64(handle) + 8
    assert host.call("dma_map_page_attrs", device, page, 8, 16, 3, 0) == (1 << 64) - 1
    host.call("dma_free_attrs", device, 5000, address, host.u64(handle), 0)
    with pytest.raises(ModuleError, match="dma_free_attrs"):
        host.call("dma_free_attrs", device, 5000, address, host.u64(handle), 0)


def test_a_device_that_reaches_too_little_is_refused(host: Host) -> None:
    layout_device = host.buffer(1024)
    mask = host.put(struct.pack("<Q", 0xFFFF_FFFF))
    host.kernel.memory.write_u64(layout_device + 640, mask)
    assert host.s32("dma_set_mask", layout_device, 0xFFF) == -5
    assert host.s32("dma_set_mask", layout_device, 0x3FFF_FFFF) == 0
    assert host.u64(mask) == 0x3FFF_FFFF
    assert host.call("dma_alloc_attrs", layout_device, 64, host.buffer(8), GFP, 0) == 0


def test_wakeup_sources_are_counted(host: Host) -> None:
    part = host.kernel.part(WakeupSources)
    source = host.call("wakeup_source_register", 0, host.put("radio"))
    assert host.string(host.u64(source)) == "radio"
    host.call("__pm_stay_awake", source)
    assert source in part.active
    host.call("__pm_relax", source)
    assert source not in part.active
    host.call("wakeup_source_unregister", source)
    device = host.buffer(1024)
    assert host.s32("device_wakeup_enable", device) == -22
    assert host.s32("device_init_wakeup", device, 1) == 0
    assert host.s32("device_wakeup_enable", device) == -17


def test_a_copy_out_of_a_slab_object_is_a_bug(host: Host) -> None:
    address = host.call("__kmalloc_noprof", 64, GFP)
    host.call("__check_object_size", address + 16, 48, 1)
    with pytest.raises(
        KernelOops, match="usercopy: Kernel memory exposure attempt detected from SLUB object 'kmalloc-64'"
    ):
        host.call("__check_object_size", address + 16, 49, 1)
    with pytest.raises(KernelOops, match="overwrite attempt detected to null address"):
        host.call("__check_object_size", 0, 4, 0)


def test_firmware_is_looked_for_in_the_files(host: Host) -> None:
    firmware, device = host.buffer(8), 0
    live = len(host.kernel.part(Slab).live)
    assert host.s32("request_firmware", firmware, host.put("acme/a.bin"), device) == -2
    assert "Direct firmware load for acme/a.bin failed with error -2" in host.log
    host.system.fs.add("/lib/firmware/acme/a.bin", MemoryFile(host.kernel.machine.journal, content=b"blob"))
    assert host.s32("request_firmware", firmware, host.put("acme/a.bin"), device) == 0
    found = host.u64(firmware)
    assert (host.u64(found), host.read(host.u64(found + 8), 4)) == (4, b"blob")
    host.call("release_firmware", found)
    assert len(host.kernel.part(Slab).live) == live
    assert host.s32("request_firmware", firmware, host.put("../etc/passwd"), device) == -22


def test_masks_are_searched(host: Host) -> None:
    mask = host.put(struct.pack("<Q", 0b1))
    assert host.s32("cpumask_next", mask and (1 << 64) - 1, mask) == 0
    assert host.s32("cpumask_next", 0, mask) == host.kernel.machine.profile.cpus
