"""Scatter lists (``lib/scatterlist.c``): {page_link, offset @8, length @12, dma_address @16, dma_length @24} an entry."""

from __future__ import annotations

import struct
from errno import EINVAL, ENOMEM

from pkvm_emu.kernel.guest_access import load, load_u32, load_u64, require_mapped, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.calling import U32, U64, Ptr

ENTRY_BYTES = 32
_CHAIN, _END, _LINK_MASK = 1, 2, 3
_OFFSET, _LENGTH, DMA_ADDRESS, DMA_LENGTH = 8, 12, 16, 24


def following(kernel: Kernel, entry: int) -> int:
    """The entry behind one; 0 at the end."""
    if load_u64(kernel, entry) & _END:
        return 0
    entry += ENTRY_BYTES
    link = load_u64(kernel, entry)
    return link & ~_LINK_MASK if link & _CHAIN else entry


def entries(kernel: Kernel, first: int, count: int) -> list[int]:
    """At most ``count`` entries of a list."""
    found: list[int] = []
    while first and len(found) < count:
        found.append(first)
        first = following(kernel, first)
    return found


def physical(kernel: Kernel, entry: int) -> int:
    """Physical address of what an entry describes; 0 without a page."""
    page = kernel.part(Vmemmap).physical(load_u64(kernel, entry) & ~_LINK_MASK)
    return 0 if page is None else page + load_u32(kernel, entry + _OFFSET)


def length(kernel: Kernel, entry: int) -> int:
    """Bytes of an entry."""
    return load_u32(kernel, entry + _LENGTH)


@kernel_symbol("sg_next", runs_guest=True)
def sg_next(kernel: Kernel, entry: Ptr) -> int:
    """The entry behind one, or NULL."""
    return following(kernel, entry)


@kernel_symbol("sg_nents", runs_guest=True)
def sg_nents(kernel: Kernel, first: Ptr) -> int:
    """How many entries there are."""
    return len(entries(kernel, first, 1 << 20))


@kernel_symbol("sg_last", runs_guest=True)
def sg_last(kernel: Kernel, first: Ptr, count: U32) -> int:
    """The last entry; NULL of none."""
    found = entries(kernel, first, count)
    return found[-1] if found else 0


@kernel_symbol("sg_init_table", runs_guest=True)
def sg_init_table(kernel: Kernel, first: Ptr, count: U32) -> None:
    """Zero ``count`` entries and mark the last."""
    require_mapped(kernel, first, ENTRY_BYTES * count)
    store(kernel, first, bytes(ENTRY_BYTES * count))
    store_uint(kernel, first + ENTRY_BYTES * (count - 1), _END, 8)


@kernel_symbol("sg_init_one", runs_guest=True)
def sg_init_one(kernel: Kernel, first: Ptr, buffer: Ptr, size: U32) -> None:
    """A list of one kernel buffer."""
    pa = kernel.memory.to_pa(buffer)
    page = kernel.part(Vmemmap).page(pa & -PAGE_SIZE)
    store(kernel, first, struct.pack("<QIIQII", page | _END, pa % PAGE_SIZE, size, 0, 0, 0))


@kernel_symbol("sg_alloc_table", runs_guest=True)
def sg_alloc_table(kernel: Kernel, table: Ptr, count: U32, flags: U32) -> int:
    """Memory for ``count`` entries; 0, -EINVAL for none, -ENOMEM."""
    store(kernel, table, bytes(16))
    if not count:
        return -EINVAL
    zero = line_facts(kernel.generation.kernel).gfp_zero
    first = kernel.part(Slab).kmalloc(ENTRY_BYTES * count, flags | zero)
    if first is None:
        return -ENOMEM
    sg_init_table(kernel, first, count)
    store(kernel, table, struct.pack("<QII", first, count, count))
    return 0


@kernel_symbol("sg_free_table", runs_guest=True)
def sg_free_table(kernel: Kernel, table: Ptr) -> None:
    """Free them."""
    kernel.part(Slab).kfree(load_u64(kernel, table), "sg_free_table")
    store(kernel, table, bytes(16))


@kernel_symbol("sg_alloc_table_from_pages_segment", runs_guest=True)
def sg_alloc_table_from_pages(
    kernel: Kernel, table: Ptr, pages: Ptr, count: U32, offset: U32, size: U64, segment: U32, flags: U32
) -> int:
    """A list of an array of pages, neighbours joined up to ``segment`` bytes; 0, -EINVAL, -ENOMEM."""
    memmap = kernel.part(Vmemmap)
    runs: list[list[int]] = []
    for index in range(count):
        pa = memmap.physical(load_u64(kernel, pages + 8 * index))
        if pa is None:
            return -EINVAL
        joins = (
            runs and runs[-1][0] + runs[-1][1] == pa and runs[-1][1] + PAGE_SIZE <= max(segment & -PAGE_SIZE, PAGE_SIZE)
        )
        if joins:
            runs[-1][1] += PAGE_SIZE
        else:
            runs.append([pa, PAGE_SIZE])
    result = sg_alloc_table(kernel, table, len(runs), flags)
    if result:
        return result
    at = load_u64(kernel, table)
    for pa, room in runs:
        taken = min(size, room - offset)
        link = load_u64(kernel, at) & _END | memmap.page(pa)
        store(kernel, at, struct.pack("<QII", link, offset, taken))
        size, offset, at = size - taken, 0, at + ENTRY_BYTES
    return 0


def _copy(kernel: Kernel, first: int, count: int, buffer: int, size: int, skip: int, to_list: bool) -> int:
    done = 0
    for entry in entries(kernel, first, count):
        here = length(kernel, entry)
        start = min(skip, here)
        skip -= start
        step = min(here - start, size - done)
        va = kernel.memory.linear_va(physical(kernel, entry) + start)
        if to_list:
            store(kernel, va, load(kernel, buffer + done, step))
        else:
            store(kernel, buffer + done, load(kernel, va, step))
        done += step
        if done == size:
            break
    return done


@kernel_symbol("sg_copy_from_buffer", runs_guest=True)
def sg_copy_from_buffer(kernel: Kernel, first: Ptr, count: U32, buffer: Ptr, size: U64) -> int:
    """Copy a buffer into a list; the bytes."""
    return _copy(kernel, first, count, buffer, size, 0, to_list=True)


@kernel_symbol("sg_copy_to_buffer", runs_guest=True)
def sg_copy_to_buffer(kernel: Kernel, first: Ptr, count: U32, buffer: Ptr, size: U64) -> int:
    """Copy a list into a buffer; the bytes."""
    return _copy(kernel, first, count, buffer, size, 0, to_list=False)


@kernel_symbol("sg_pcopy_from_buffer", runs_guest=True)
def sg_pcopy_from_buffer(kernel: Kernel, first: Ptr, count: U32, buffer: Ptr, size: U64, skip: U64) -> int:
    """The same from an offset on."""
    return _copy(kernel, first, count, buffer, size, skip, to_list=True)


@kernel_symbol("sg_pcopy_to_buffer", runs_guest=True)
def sg_pcopy_to_buffer(kernel: Kernel, first: Ptr, count: U32, buffer: Ptr, size: U64, skip: U64) -> int:
    """The same from an offset on."""
    return _copy(kernel, first, count, buffer, size, skip, to_list=False)
