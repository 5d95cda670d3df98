"""Slab, pages, vmalloc and ioremap: what is given, what is zeroed, and what a wrong free is told."""

from __future__ import annotations

import struct

import pytest
from exports_host import Host

import pkvm_emu
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.profile import MachineProfile

GFP_KERNEL, GFP_ZERO = 0xCC0, 0x100


def test_kmalloc_gives_zeroed_aligned_objects_that_do_not_overlap(host: Host) -> None:
    first, second = (host.call("__kmalloc_noprof", 100, GFP_KERNEL) for _ in range(2))
    assert abs(first - second) >= 128
    assert first % 8 == second % 8 == 0
    assert host.read(first, 100) == bytes(100)
    assert host.call("ksize", host.call("__kmalloc_noprof", 64, GFP_KERNEL)) == 64


def test_memory_keeps_what_was_there_where_the_command_line_says_so() -> None:
    host = Host(pkvm_emu.boot("android16-6.12", cmdline="init_on_alloc=0"))
    address = host.call("__kmalloc_noprof", 64, GFP_KERNEL)
    host.kernel.memory.write(address, b"stale")
    host.call("kfree", address)
    assert host.call("__kmalloc_noprof", 64, GFP_KERNEL) == address
    assert host.read(address, 5) == b"stale"
    host.call("kfree", address)
    host.call("__kmalloc_noprof", 64, GFP_KERNEL | GFP_ZERO)
    assert host.read(address, 5) == bytes(5)


def test_kmalloc_of_nothing_and_of_too_much(host: Host) -> None:
    assert host.call("__kmalloc_noprof", 0, GFP_KERNEL) == 16
    host.call("kfree", 16)
    host.call("kfree", 0)
    assert host.call("__kmalloc_noprof", 1 << 40, GFP_KERNEL) == 0


def test_a_large_kmalloc_is_whole_pages(host: Host) -> None:
    address = host.call("__kmalloc_noprof", 10000, GFP_KERNEL)
    assert address % PAGE_SIZE == 0
    assert host.call("ksize", address) == 4 * PAGE_SIZE
    host.call("kfree", address)
    with pytest.raises(ModuleError, match="free already"):
        host.call("kfree", address)


def test_krealloc_moves_the_contents_when_it_grows(host: Host) -> None:
    address = host.call("__kmalloc_noprof", 8, GFP_KERNEL)
    host.kernel.memory.write(address, b"12345678")
    grown = host.call("krealloc_noprof", address, 500, GFP_KERNEL)
    assert host.read(grown, 9) == b"12345678\0"
    with pytest.raises(ModuleError, match="free already"):
        host.call("kfree", address)


@pytest.mark.parametrize(("offset", "text"), [(8, "8 bytes into the object"), (1 << 20, "nothing is allocated there")])
def test_a_wild_free_names_the_address(host: Host, offset: int, text: str) -> None:
    address = host.call("__kmalloc_noprof", 64, GFP_KERNEL)
    with pytest.raises(ModuleError, match=text) as caught:
        host.call("kfree", address + offset)
    assert f"{address + offset:#x}" in str(caught.value)


def test_constant_sized_kmalloc_finds_its_cache_in_the_table(module_host: Host) -> None:
    module = module_host.system.modules["callbacks"]
    assert module_host.kernel.call_s32(module.symbol("constant_allocation") or 0) == 0


def test_6_1_has_no_object_below_128_bytes() -> None:
    host = Host(pkvm_emu.boot("android14-6.1"))
    assert host.call("ksize", host.call("__kmalloc", 8, GFP_KERNEL)) == 128
    table = host.kernel.symbols.resolve("kmalloc_caches")
    assert [bool(host.u64(table + 8 * index)) for index in (6, 7, 8)] == [False, True, True]


def test_a_cache_constructs_its_objects_and_refuses_foreign_ones(module_host: Host) -> None:
    host = module_host
    module = host.system.modules["callbacks"]
    args = host.put(struct.pack("<4I?7xQ", 64, 0, 0, 0, False, module.symbol("construct") or 0))
    cache = host.call("__kmem_cache_create_args", host.put("things"), 40, args, 0)
    thing = host.call("kmem_cache_alloc_noprof", cache, GFP_KERNEL)
    assert thing % 64 == 0
    assert host.read(thing, 2) == b"\x5a\x5a"
    host.call("kmem_cache_destroy", cache)
    assert "kmem_cache_destroy things: Slab cache still has objects" in host.log
    other = host.call("__kmalloc_noprof", 64, GFP_KERNEL)
    with pytest.raises(ModuleError, match="is of kmalloc-64, not of things"):
        host.call("kmem_cache_free", cache, other)
    host.call("kmem_cache_free", cache, thing)
    host.call("kmem_cache_destroy", cache)
    with pytest.raises(ModuleError, match="no slab cache"):
        host.call("kmem_cache_alloc_noprof", cache, GFP_KERNEL)


def test_pages_come_zeroed_and_go_back_once(host: Host) -> None:
    address = host.call("get_free_pages_noprof", GFP_KERNEL | GFP_ZERO, 2)
    assert address % (4 * PAGE_SIZE) == 0
    assert host.read(address, 4 * PAGE_SIZE) == bytes(4 * PAGE_SIZE)
    with pytest.raises(ModuleError, match="with order 0: the block was allocated with order 2"):
        host.call("free_pages", address, 0)
    host.call("free_pages", address, 2)
    with pytest.raises(ModuleError, match="is not allocated"):
        host.call("free_pages", address, 2)
    host.call("free_pages", 0, 2)


def test_an_order_beyond_the_largest_warns(host: Host) -> None:
    assert host.call("get_free_pages_noprof", GFP_KERNEL, 11) == 0
    assert "WARNING" in host.log
    assert "W" in host.kernel.tainted


def test_struct_page_arithmetic_is_that_of_the_headers(host: Host) -> None:
    page = host.call("alloc_pages_noprof", GFP_KERNEL, 1)
    start = 0xFFFF_FFFE_C000_0000
    pa = host.kernel.memory.memstart + (page - start) // 64 * PAGE_SIZE
    assert host.kernel.pages.order_of(pa) == 1
    assert host.kernel.memory.read_u32(page + 52) == 1
    host.kernel.memory.write_u32(page + 52, 2)
    host.call("__free_pages", page, 1)
    assert host.kernel.pages.order_of(pa) == 1
    host.call("__free_pages", page, 1)
    assert host.kernel.pages.order_of(pa) is None


def test_exact_pages_are_freed_one_by_one(host: Host) -> None:
    address = host.call("alloc_pages_exact_noprof", 5 * PAGE_SIZE, GFP_KERNEL)
    pa = host.kernel.memory.linear_pa(address)
    assert host.kernel.pages.order_of(pa + 5 * PAGE_SIZE) is None
    host.call("free_pages_exact", address, 5 * PAGE_SIZE)
    assert host.kernel.pages.order_of(pa) is None


def test_vmalloc_memory_faults_after_vfree(host: Host) -> None:
    address = host.call("vmalloc_noprof", 5 * PAGE_SIZE + 1)
    _, fault = host.kernel.access("host_store64", address + 5 * PAGE_SIZE, 0x1234)
    assert fault is None
    assert host.kernel.access("host_load64", address + 5 * PAGE_SIZE)[0] == 0x1234
    page = host.call("vmalloc_to_page", address)
    assert host.kernel.part(Vmemmap).physical(page) == host.kernel.memory.to_pa(address)
    host.call("vfree", address)
    assert host.kernel.access("host_load64", address)[1] is not None
    host.call("vfree", address)
    assert f"Trying to vfree() nonexistent vm area ({address:016x})" in host.log
    assert host.call("vmalloc_noprof", 0) == 0


def test_kvmalloc_falls_back_to_vmalloc(host: Host) -> None:
    small = host.call("__kvmalloc_node_noprof", 100, 0, GFP_KERNEL, 0)
    large = host.call("__kvmalloc_node_noprof", 5 << 20, 0, GFP_KERNEL, 0)
    assert small < large
    assert host.call("is_vmalloc_addr", large) == 1
    host.call("kvfree", small)
    host.call("kvfree", large)
    with pytest.raises(ModuleError, match="kvfree"):
        host.call("kvfree", large)


def test_vmap_shows_the_same_memory_twice(host: Host) -> None:
    pages = [host.call("alloc_pages_noprof", GFP_KERNEL, 0) for _ in range(2)]
    mapped = host.call("vmap", host.put(struct.pack("<2Q", *pages)), 2, 0, 0)
    second = host.kernel.part(Vmemmap).physical(pages[1])
    assert second is not None
    host.kernel.memory.write(mapped + PAGE_SIZE, b"seen")
    assert host.system.machine.ram.read(second, 4) == b"seen"
    host.call("vunmap", mapped)
    assert host.call("vmap", host.put(struct.pack("<Q", 0x1234)), 1, 0, 0) == 0


def test_ioremap_maps_devices_and_refuses_ram(host: Host) -> None:
    mapped = host.call("ioremap_prot", 0x900_0018, 8, 4 << 2)
    assert mapped % PAGE_SIZE == 0x18
    assert host.kernel.memory.to_pa(mapped) == 0x900_0018
    host.call("iounmap", mapped)
    assert host.call("vmalloc_to_page", mapped) == 0
    assert host.call("ioremap_prot", 0x900_0000, 0, 4 << 2) == 0
    assert host.call("ioremap_prot", host.kernel.machine.ram.base, PAGE_SIZE, 4 << 2) == 0
    assert "arch/arm64/mm/ioremap.c" in host.log


def test_memremap_of_ram_is_the_linear_map(host: Host) -> None:
    ram = host.kernel.machine.ram.base + (64 << 20)
    assert host.call("memremap", ram, PAGE_SIZE, 1) == host.kernel.memory.linear_va(ram)
    assert host.call("memremap", ram, PAGE_SIZE, 4) == 0
    assert host.call("memremap", ram, PAGE_SIZE, 0) == 0


def test_a_page_that_the_hypervisor_took_is_out_of_reach() -> None:
    host = Host(pkvm_emu.boot("android16-6.12", deprivilege=False))
    page = host.call("get_free_pages_noprof", GFP_KERNEL, 0)
    pfn = host.kernel.memory.linear_pa(page) // PAGE_SIZE
    host.kernel.memory.write(page, b"secret!!")
    out = host.buffer(16)
    assert host.system.hyp.ownership.host_donate_hyp(pfn, 1) == 0
    assert host.s64("copy_from_kernel_nofault", out, page, 8) == 0
    assert host.read(out, 8) == b"secret!!"
    host.kernel.deprivilege()
    assert host.s64("copy_from_kernel_nofault", out, page, 8) == -14
    assert host.s64("copy_to_kernel_nofault", page, out, 8) == -14
    with pytest.raises(KernelOops, match=r"in memcpy\(\)"):
        host.call("memcpy", out, page, 8)


def test_nofault_copies_give_efault_and_no_oops(host: Host) -> None:
    out = host.buffer(32)
    assert host.s64("copy_from_kernel_nofault", out, 0xFFFF_FFC0_7000_0000, 8) == -14
    assert host.s64("copy_from_kernel_nofault", out, host.put(b"abcdefghijk"), 11) == 0
    assert host.read(out, 11) == b"abcdefghijk"
    assert host.s64("strncpy_from_kernel_nofault", out, host.put("name"), 16) == 5
    assert host.s64("strncpy_from_kernel_nofault", out, host.put("name"), 3) == 3
    assert host.string(out) == "na"
    assert host.call("_copy_from_user", out, 0x1000, 8) == 8
    assert host.call("_copy_to_user", 0x1000, out, 8) == 8


def test_a_snapshot_brings_every_allocator_back() -> None:
    host = Host(pkvm_emu.boot("android16-6.12", profile=MachineProfile(ram_size=64 << 20)))
    system = host.system
    before = system.machine.digest()
    saved = system.snapshot()
    objects = [host.call("__kmalloc_noprof", size, GFP_KERNEL) for size in (8, 96, 5000, 100000)]
    host.call("vmalloc_noprof", 10000)
    host.call("alloc_pages_noprof", GFP_KERNEL, 3)
    host.call("kfree", objects[1])
    host.call("get_random_u64")
    host.call("__mutex_init", host.buffer(64), 0, 0)
    host.call("_raw_spin_lock", host.buffer(8))
    host.call("msleep", 5)
    assert system.machine.digest() != before
    system.restore(saved)
    assert system.machine.digest() == before
    assert not host.kernel.part(Slab).live.keys() & set(objects)
    assert host.call("__kmalloc_noprof", 8, GFP_KERNEL) == objects[0]
