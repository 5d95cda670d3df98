"""kmalloc and slab caches (``mm/slab_common.c``, ``mm/slub.c``, ``mm/util.c``), under the names of 5.15 to 6.12."""

from __future__ import annotations

import struct

from pkvm_emu.kernel.guest_access import load_string, load_u32, load_u64, misuse, require_mapped, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.slab import KMALLOC_SIZES, Slab
from pkvm_emu.kernel.vmalloc import Vmalloc
from pkvm_emu.machine.calling import S32, U32, U64, Ptr

#: More types than any configuration has (6.6 has 18 with randomised caches): every row has the same caches.
_KMALLOC_TYPES = 24


@kernel_variable("kmalloc_caches", _KMALLOC_TYPES * len(KMALLOC_SIZES) * 8)
def kmalloc_caches(kernel: Kernel) -> bytes:
    """``struct kmem_cache *[type][index]``: what inlined ``kmalloc`` of a constant size looks its cache up in."""
    slab = kernel.part(Slab)
    smallest = line_facts(kernel.generation.kernel).kmalloc_min_size
    row = [(slab.kmalloc_cache(size) or 0) if size and (size >= smallest) else 0 for size in KMALLOC_SIZES]
    return struct.pack(f"<{len(row)}Q", *row) * _KMALLOC_TYPES


@kernel_variable("mem_alloc_profiling_key", 16)
def mem_alloc_profiling_key(kernel: Kernel) -> bytes:
    """The static key of ``CONFIG_MEM_ALLOC_PROFILING`` (6.10 and later): off."""
    return b""


# kmalloc


@kernel_symbol(
    *("__kmalloc", "__kmalloc_noprof", "__kmalloc_node", "__kmalloc_node_track_caller", "__kmalloc_track_caller"),
    *("kmalloc_large", "__kmalloc_large_noprof", "kmalloc_order", "kmalloc_large_node", "__kmalloc_large_node_noprof"),
    "kmalloc_order_trace",
    runs_guest=True,
)
def kmalloc(kernel: Kernel, size: U64, flags: U32) -> int:
    """``size`` bytes, or NULL."""
    return kernel.part(Slab).kmalloc(size, flags) or 0


@kernel_symbol("__kmalloc_node_noprof", "__kmalloc_node_track_caller_noprof", runs_guest=True)
def kmalloc_node_noprof(kernel: Kernel, size: U64, second: U64, third: U64) -> int:
    """``size`` bytes: arguments (size, flags, node), or with ``CONFIG_SLAB_BUCKETS`` (size, bucket, flags, node)."""
    return kernel.part(Slab).kmalloc(size, _flags_of(second, third)) or 0


def _flags_of(second: int, third: int) -> int:
    """The GFP flags where a bucket may come before them: a bucket is NULL or a kernel pointer, flags are neither."""
    return (third if second == 0 or second >> 32 else second) & 0xFFFF_FFFF


@kernel_symbol(
    *("kmem_cache_alloc_trace", "kmalloc_trace", "__kmalloc_cache_noprof", "kmalloc_trace_noprof"), runs_guest=True
)
def kmalloc_trace(kernel: Kernel, cache: Ptr, flags: U32, size: U64) -> int:
    """``size`` bytes of a kmalloc cache (what ``kmalloc`` of a constant size compiles to)."""
    return kernel.part(Slab).alloc(cache, flags, size) or 0


@kernel_symbol("kmem_cache_alloc_node_trace", "kmalloc_node_trace", "__kmalloc_cache_node_noprof", runs_guest=True)
def kmalloc_node_trace(kernel: Kernel, cache: Ptr, flags: U32, node: S32, size: U64) -> int:
    """The same with a memory node."""
    return kernel.part(Slab).alloc(cache, flags, size) or 0


@kernel_symbol("kfree", runs_guest=True)
def kfree(kernel: Kernel, address: Ptr) -> None:
    """Free; NULL is ignored."""
    kernel.part(Slab).kfree(address)


@kernel_symbol("kfree_sensitive", "kzfree", runs_guest=True)
def kfree_sensitive(kernel: Kernel, address: Ptr) -> None:
    """Zero and free."""
    size = kernel.part(Slab).usable_size(address)
    if size:
        kernel.memory.write(address, bytes(size))
    kernel.part(Slab).kfree(address, "kfree_sensitive")


@kernel_symbol("krealloc", "krealloc_noprof", runs_guest=True)
def krealloc(kernel: Kernel, address: Ptr, size: U64, flags: U32) -> int:
    """Give an object another size; NULL (and the old object stays) without memory."""
    return kernel.part(Slab).resize(address, size, flags) or 0


@kernel_symbol("ksize", "__ksize")
def ksize(kernel: Kernel, address: Ptr) -> int:
    """Bytes that the object really has."""
    return kernel.part(Slab).usable_size(address)


@kernel_symbol("kmalloc_size_roundup")
def kmalloc_size_roundup(kernel: Kernel, size: U64) -> int:
    """The size that ``kmalloc(size)`` really gives."""
    if size == 0 or size > 1 << 22:
        return size
    if size > KMALLOC_SIZES[-1]:
        return 4096 << ((size - 1) // 4096).bit_length()
    slab = kernel.part(Slab)
    cache = slab.kmalloc_cache(size)
    return slab.caches[cache].size if cache is not None else size


# kvmalloc


@kernel_symbol("kvmalloc_node", "__kvmalloc_node_noprof", "kvmalloc_node_noprof", runs_guest=True)
def kvmalloc_node(kernel: Kernel, size: U64, second: U64, third: U64) -> int:
    """``kmalloc``, or ``vmalloc`` where that has no room. 6.12 with buckets passes (size, bucket, flags, node)."""
    address = kernel.part(Slab).kmalloc(size, _flags_of(second, third))
    return address or kernel.part(Vmalloc).allocate(size) or 0


@kernel_symbol("kvfree", runs_guest=True)
def kvfree(kernel: Kernel, address: Ptr) -> None:
    """Free what ``kvmalloc`` gave."""
    vmalloc = kernel.part(Vmalloc)
    if not vmalloc.contains(address):
        kernel.part(Slab).kfree(address, "kvfree")
    elif not vmalloc.release(address):
        raise misuse(kernel, f"kvfree({address:#x}): nothing is allocated there")


@kernel_symbol("kvfree_sensitive", runs_guest=True)
def kvfree_sensitive(kernel: Kernel, address: Ptr, size: U64) -> None:
    """Zero and free."""
    if address > 16:
        require_mapped(kernel, address, size)
        kernel.memory.write(address, bytes(size))
    kvfree(kernel, address)


@kernel_symbol("kvrealloc", "kvrealloc_noprof", runs_guest=True)
def kvrealloc(kernel: Kernel, address: Ptr, second: U64, third: U64, fourth: U64) -> int:
    """Give an object another size. 6.12: (address, size, flags); before: (address, old size, size, flags)."""
    combined = line_facts(kernel.generation.kernel).kvrealloc_has_old_size
    size, flags = (third, fourth) if combined else (second, third)
    vmalloc = kernel.part(Vmalloc)
    if not vmalloc.contains(address):
        return kernel.part(Slab).resize(address, size, flags & 0xFFFF_FFFF) or 0
    area = vmalloc.areas.get(address)
    if area is None:
        raise misuse(kernel, f"kvrealloc({address:#x}): nothing is allocated there")
    if size <= area.size:
        return address
    new = vmalloc.allocate(size)
    if new is not None:
        kernel.memory.write(new, kernel.memory.read(address, area.size))
        vmalloc.release(address)
    return new or 0


# Caches


@kernel_symbol("kmem_cache_create", runs_guest=True)
def kmem_cache_create(kernel: Kernel, name: Ptr, size: U32, align: U32, flags: U64, constructor: Ptr) -> int:
    """Make a cache; NULL without memory."""
    label = load_string(kernel, name).decode("latin-1")
    return kernel.part(Slab).create(label, size, align, constructor) or 0


@kernel_symbol("kmem_cache_create_usercopy", runs_guest=True)
def kmem_cache_create_usercopy(
    kernel: Kernel, name: Ptr, size: U32, align: U32, flags: U64, offset: U32, length: U32, constructor: Ptr
) -> int:
    """The same with the part that user space may be given."""
    return kmem_cache_create(kernel, name, size, align, flags, constructor)


@kernel_symbol("__kmem_cache_create_args", runs_guest=True)
def kmem_cache_create_args(kernel: Kernel, name: Ptr, size: U32, args: Ptr, flags: U64) -> int:
    """The same with a ``struct kmem_cache_args`` {u32 align, useroffset, usersize, freeptr_offset; bool; ctor @24} (6.12)."""
    return kmem_cache_create(kernel, name, size, load_u32(kernel, args), flags, load_u64(kernel, args + 24))


@kernel_symbol("kmem_cache_destroy", runs_guest=True)
def kmem_cache_destroy(kernel: Kernel, cache: Ptr) -> None:
    """Remove a cache; with live objects the kernel warns and keeps it."""
    if not cache:
        return
    slab = kernel.part(Slab)
    facts = slab.caches.get(cache)
    if facts is None:
        raise misuse(kernel, f"kmem_cache_destroy({cache:#x}): that is no slab cache")
    if slab.destroy(cache):
        called = kernel.describe(kernel.machine.engine.read("x30"))
        warn(
            kernel,
            "kmem_cache_destroy",
            f"kmem_cache_destroy {facts.name}: Slab cache still has objects when called from {called}",
        )


@kernel_symbol(
    "kmem_cache_alloc",
    "kmem_cache_alloc_noprof",
    "kmem_cache_alloc_node",
    "kmem_cache_alloc_node_noprof",
    runs_guest=True,
)
def kmem_cache_alloc(kernel: Kernel, cache: Ptr, flags: U32) -> int:
    """An object, or NULL."""
    return kernel.part(Slab).alloc(cache, flags) or 0


@kernel_symbol("kmem_cache_alloc_lru", "kmem_cache_alloc_lru_noprof", runs_guest=True)
def kmem_cache_alloc_lru(kernel: Kernel, cache: Ptr, lru: Ptr, flags: U32) -> int:
    """An object that an LRU list accounts for, or NULL."""
    return kernel.part(Slab).alloc(cache, flags) or 0


@kernel_symbol("kmem_cache_free", runs_guest=True)
def kmem_cache_free(kernel: Kernel, cache: Ptr, address: Ptr) -> None:
    """Give an object back to its cache."""
    kernel.part(Slab).kfree(address, "kmem_cache_free", cache)


@kernel_symbol("kmem_cache_size")
def kmem_cache_size(kernel: Kernel, cache: Ptr) -> int:
    """Bytes of an object."""
    facts = kernel.part(Slab).caches.get(cache)
    if facts is None:
        raise misuse(kernel, f"kmem_cache_size({cache:#x}): that is no slab cache")
    return facts.size


@kernel_symbol("kmem_cache_shrink")
def kmem_cache_shrink(kernel: Kernel, cache: Ptr) -> int:
    """Nothing is held back: 0."""
    return 0


@kernel_symbol("kmem_cache_alloc_bulk", "kmem_cache_alloc_bulk_noprof", runs_guest=True)
def kmem_cache_alloc_bulk(kernel: Kernel, cache: Ptr, flags: U32, count: U64, array: Ptr) -> int:
    """``count`` objects into an array: all of them, or 0."""
    slab = kernel.part(Slab)
    taken: list[int] = []
    for index in range(count):
        address = slab.alloc(cache, flags)
        if address is None:
            for one in taken:
                slab.kfree(one)
            return 0
        taken.append(address)
        store_uint(kernel, array + 8 * index, address, 8)
    return count


@kernel_symbol("kmem_cache_free_bulk", runs_guest=True)
def kmem_cache_free_bulk(kernel: Kernel, cache: Ptr, count: U64, array: Ptr) -> None:
    """Give ``count`` objects back."""
    for index in range(count):
        kernel.part(Slab).kfree(load_u64(kernel, array + 8 * index), "kmem_cache_free_bulk", cache)


@kernel_symbol("kfree_call_rcu", "kvfree_call_rcu", runs_guest=True)
def kvfree_call_rcu(kernel: Kernel, head: Ptr, second: Ptr) -> None:
    """Free after a grace period, which is over at once on one CPU: (head, object), or before 6.6 (head, offset)."""
    if not second >> 32:
        second = head - second
    kvfree(kernel, second)
