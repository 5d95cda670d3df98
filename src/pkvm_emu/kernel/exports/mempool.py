"""Pools of elements that are there when memory is short (``mm/mempool.c``).

``mempool_t``: {lock, min_nr @4, curr_nr @8, elements @16, pool_data @24, alloc @32, free @40, wait queue}.
"""

from __future__ import annotations

import struct
from errno import EINVAL, ENOMEM

from pkvm_emu.kernel.guest_access import load, load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.sync import Locks
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.calling import S32, U32, Ptr

_BYTES, _GFP_KERNEL = 72, 0xCC0
_MINIMUM, _CURRENT, _ELEMENTS, _DATA, _ALLOC, _FREE = 4, 8, 16, 24, 32, 40


def _start(kernel: Kernel, pool: int, minimum: int, alloc: int, free: int, data: int) -> int:
    """Fill a pool with its reserve; 0 or -ENOMEM (with everything given back)."""
    if minimum < 0:
        return -ENOMEM  # As a size_t no allocation is as large.
    array = kernel.part(Slab).kmalloc(8 * minimum, line_facts(kernel.generation.kernel).gfp_zero)
    if array is None:
        return -ENOMEM
    store(kernel, pool, struct.pack("<IIIIQQQQ", 0, minimum, 0, 0, array, data, alloc, free).ljust(_BYTES, b"\0"))
    queue = pool + 56
    store(kernel, queue, struct.pack("<QQ", queue, queue))
    for index in range(minimum):
        element = kernel.call(alloc, _GFP_KERNEL, data)
        if not element:
            mempool_exit(kernel, pool)
            return -ENOMEM
        store_uint(kernel, array + 8 * index, element, 8)
        store_uint(kernel, pool + _CURRENT, index + 1, 4)
    return 0


@kernel_symbol("mempool_init", "mempool_init_noprof", runs_guest=True)
def mempool_init(kernel: Kernel, pool: Ptr, minimum: S32, alloc: Ptr, free: Ptr, data: Ptr) -> int:
    """Make a pool ready, with ``minimum`` elements in reserve; 0 or -ENOMEM."""
    return _start(kernel, pool, minimum, alloc, free, data)


@kernel_symbol("mempool_exit", runs_guest=True)
def mempool_exit(kernel: Kernel, pool: Ptr) -> None:
    """Give the reserve back."""
    array = load_u64(kernel, pool + _ELEMENTS)
    if not array:
        return
    free, data = load_u64(kernel, pool + _FREE), load_u64(kernel, pool + _DATA)
    for index in range(load_u32(kernel, pool + _CURRENT)):
        kernel.call(free, load_u64(kernel, array + 8 * index), data)
    kernel.part(Slab).kfree(array, "mempool_exit")
    store_uint(kernel, pool + _ELEMENTS, 0, 8)
    store_uint(kernel, pool + _CURRENT, 0, 4)


@kernel_symbol("mempool_create", "mempool_create_node", "mempool_create_node_noprof", runs_guest=True)
def mempool_create(kernel: Kernel, minimum: S32, alloc: Ptr, free: Ptr, data: Ptr) -> int:
    """A new pool, or NULL."""
    pool = kernel.part(Slab).kmalloc(_BYTES, line_facts(kernel.generation.kernel).gfp_zero)
    if pool is None:
        return 0
    if _start(kernel, pool, minimum, alloc, free, data):
        kernel.part(Slab).kfree(pool)
        return 0
    return pool


@kernel_symbol("mempool_destroy", runs_guest=True)
def mempool_destroy(kernel: Kernel, pool: Ptr) -> None:
    """Give it back; NULL is ignored."""
    if pool:
        mempool_exit(kernel, pool)
        kernel.part(Slab).kfree(pool, "mempool_destroy")


@kernel_symbol("mempool_alloc", "mempool_alloc_noprof", runs_guest=True)
def mempool_alloc(kernel: Kernel, pool: Ptr, flags: U32) -> int:
    """A new element, else one of the reserve, else NULL where the caller may not sleep.

    Raises:
        Stuck: it may sleep, and nobody can give one back.
    """
    alloc, data = load_u64(kernel, pool + _ALLOC), load_u64(kernel, pool + _DATA)
    element = kernel.call(alloc, flags, data)
    if element:
        return element
    left = load_u32(kernel, pool + _CURRENT)
    if left:
        store_uint(kernel, pool + _CURRENT, left - 1, 4)
        return load_u64(kernel, load_u64(kernel, pool + _ELEMENTS) + 8 * (left - 1))
    if flags & line_facts(kernel.generation.kernel).gfp_direct_reclaim:
        raise kernel.part(Locks).wait(f"mempool {kernel.describe(pool)} is empty", pool)
    return 0


@kernel_symbol("mempool_free", runs_guest=True)
def mempool_free(kernel: Kernel, element: Ptr, pool: Ptr) -> None:
    """Give an element back: into the reserve where that is not full; NULL is ignored."""
    if not element:
        return
    there, wanted = load_u32(kernel, pool + _CURRENT), load_u32(kernel, pool + _MINIMUM)
    if there < wanted:
        store_uint(kernel, load_u64(kernel, pool + _ELEMENTS) + 8 * there, element, 8)
        store_uint(kernel, pool + _CURRENT, there + 1, 4)
    else:
        kernel.call(load_u64(kernel, pool + _FREE), element, load_u64(kernel, pool + _DATA))


@kernel_symbol("mempool_resize", runs_guest=True)
def mempool_resize(kernel: Kernel, pool: Ptr, minimum: S32) -> int:
    """Another size of the reserve; 0, -EINVAL, -ENOMEM."""
    if minimum <= 0:
        return -EINVAL
    array, there = load_u64(kernel, pool + _ELEMENTS), load_u32(kernel, pool + _CURRENT)
    free, data = load_u64(kernel, pool + _FREE), load_u64(kernel, pool + _DATA)
    while there > minimum:
        there -= 1
        store_uint(kernel, pool + _CURRENT, there, 4)
        kernel.call(free, load_u64(kernel, array + 8 * there), data)
    larger = kernel.part(Slab).kmalloc(8 * minimum, line_facts(kernel.generation.kernel).gfp_zero)
    if larger is None:
        return -ENOMEM
    store(kernel, larger, load(kernel, array, 8 * there))
    kernel.part(Slab).kfree(array)
    store_uint(kernel, pool + _ELEMENTS, larger, 8)
    store_uint(kernel, pool + _MINIMUM, minimum, 4)
    while there < minimum:
        element = kernel.call(load_u64(kernel, pool + _ALLOC), _GFP_KERNEL, data)
        if not element:
            break
        store_uint(kernel, larger + 8 * there, element, 8)
        there += 1
        store_uint(kernel, pool + _CURRENT, there, 4)
    return 0


# What pools are made of


@kernel_symbol("mempool_kmalloc", runs_guest=True)
def mempool_kmalloc(kernel: Kernel, flags: U32, size: Ptr) -> int:
    """An element of ``size`` bytes (the pool's data)."""
    return kernel.part(Slab).kmalloc(size, flags) or 0


@kernel_symbol("mempool_kfree", runs_guest=True)
def mempool_kfree(kernel: Kernel, element: Ptr, size: Ptr) -> None:
    """Free it."""
    kernel.part(Slab).kfree(element, "mempool_kfree")


@kernel_symbol("mempool_alloc_slab", runs_guest=True)
def mempool_alloc_slab(kernel: Kernel, flags: U32, cache: Ptr) -> int:
    """An element of a slab cache (the pool's data)."""
    return kernel.part(Slab).alloc(cache, flags) or 0


@kernel_symbol("mempool_free_slab", runs_guest=True)
def mempool_free_slab(kernel: Kernel, element: Ptr, cache: Ptr) -> None:
    """Free it."""
    kernel.part(Slab).kfree(element, "mempool_free_slab", cache)


@kernel_symbol("mempool_alloc_pages", runs_guest=True)
def mempool_alloc_pages(kernel: Kernel, flags: U32, order: Ptr) -> int:
    """``2**order`` pages (the pool's data) as ``struct page *``."""
    pa = kernel.pages.alloc_pages(order, zero=True)
    return 0 if pa is None else kernel.part(Vmemmap).page(pa)


@kernel_symbol("mempool_free_pages", runs_guest=True)
def mempool_free_pages(kernel: Kernel, element: Ptr, order: Ptr) -> None:
    """Free them."""
    pa = kernel.part(Vmemmap).physical(element)
    if pa is not None:
        kernel.pages.free_pages(pa & -PAGE_SIZE, order)
