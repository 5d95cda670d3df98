"""Contiguous memory (``mm/cma.c``, ``kernel/dma/contiguous.c``, ``mm/page_alloc.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.cma import ContiguousAreas
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.exports.pages import release, split
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.calling import S32, U32, U64, Bool, Ptr


def _contiguous(kernel: Kernel, count: int, align_order: int) -> int:
    order = max((count - 1).bit_length(), align_order) if count else 0
    pa = kernel.pages.alloc_pages(order, zero=True) if count else None
    if pa is None:
        return 0
    order = kernel.pages.order_of(pa) or 0
    split(kernel, pa, order)
    for page in range(pa + count * PAGE_SIZE, pa + (PAGE_SIZE << order), PAGE_SIZE):
        kernel.pages.free_pages(page, 0)
    return kernel.part(Vmemmap).page(pa)


def _free(kernel: Kernel, pa: int, count: int, name: str) -> None:
    for at in range(pa, pa + count * PAGE_SIZE, PAGE_SIZE):
        release(kernel, at, 0, name)


def _take(kernel: Kernel, area: int, count: int, align_order: int) -> int:
    areas = kernel.part(ContiguousAreas)
    if area == areas.default:
        return _contiguous(kernel, count, align_order)
    pa = areas.take(area, count, align_order)
    if pa is None:
        return 0
    pages = kernel.part(Vmemmap)
    for at in range(pa, pa + count * PAGE_SIZE, PAGE_SIZE):
        pages.set_references(at, 1)
    return pages.page(pa)


def _give_back(kernel: Kernel, area: int, page: int, count: int, name: str) -> int:
    pa = kernel.part(Vmemmap).physical(page)
    if pa is None:
        return False
    areas = kernel.part(ContiguousAreas)
    if area != areas.default:
        return areas.give_back(area, pa, count)
    _free(kernel, pa, count, name)
    return True


def device_area(kernel: Kernel, device: int) -> int:
    """``dev_get_cma_area``: a device's own area, or the default one."""
    areas = kernel.part(ContiguousAreas)
    offset = kernel.part(Devices).at(device).layout.cma_area if device else None
    own = kernel.memory.read_u64(device + offset) if offset is not None else 0
    return own if own in areas.areas else areas.default_area()


@kernel_symbol("cma_alloc", runs_guest=True)
def cma_alloc(kernel: Kernel, area: Ptr, count: U64, align_order: U32, no_warn: Bool) -> int:
    """``struct page`` of ``count`` contiguous pages of an area, or NULL; 4 MiB at most come from the default one."""
    known = area in kernel.part(ContiguousAreas).areas
    return _take(kernel, area, count, align_order) if known and count else 0


@kernel_symbol("cma_release", runs_guest=True)
def cma_release(kernel: Kernel, area: Ptr, page: Ptr, count: U32) -> int:
    """Free them: true, or false where ``page`` is not of the area."""
    known = area in kernel.part(ContiguousAreas).areas
    return known and page and _give_back(kernel, area, page, count, "cma_release")


@kernel_symbol("dma_alloc_from_contiguous", runs_guest=True)
def dma_alloc_from_contiguous(kernel: Kernel, device: Ptr, count: U64, align_order: U32, no_warn: Bool) -> int:
    """The same from a device's area."""
    return _take(kernel, device_area(kernel, device), count, align_order) if count else 0


@kernel_symbol("dma_release_from_contiguous", runs_guest=True)
def dma_release_from_contiguous(kernel: Kernel, device: Ptr, page: Ptr, count: S32) -> int:
    """Free them: true, or false where ``page`` is not of the area."""
    return _give_back(kernel, device_area(kernel, device), page, count, "dma_release_from_contiguous")


@kernel_symbol("cma_get_base")
def cma_get_base(kernel: Kernel, area: Ptr) -> int:
    """Physical start of an area."""
    known = kernel.part(ContiguousAreas).areas.get(area)
    return known.base if known else 0


@kernel_symbol("cma_get_size")
def cma_get_size(kernel: Kernel, area: Ptr) -> int:
    """Bytes of an area."""
    known = kernel.part(ContiguousAreas).areas.get(area)
    return known.size if known else 0


@kernel_symbol("cma_get_name")
def cma_get_name(kernel: Kernel, area: Ptr) -> int:
    """The name of an area: ``reserved``, or that of its node."""
    known = kernel.part(ContiguousAreas).areas.get(area)
    return kernel.part(Devices).string(known.name) if known else 0


@kernel_symbol("cma_for_each_area", runs_guest=True)
def cma_for_each_area(kernel: Kernel, function: Ptr, data: Ptr) -> int:
    """Call ``function(area, data)`` for each area, until one call returns something."""
    areas = kernel.part(ContiguousAreas)
    areas.default_area()
    for area in list(areas.areas):
        answer = kernel.call_s32(function, area, data)
        if answer:
            return answer
    return 0


@kernel_variable("dma_contiguous_default_area", 8)
def dma_contiguous_default_area(kernel: Kernel) -> bytes:
    """Pointer to the default area."""
    return kernel.part(ContiguousAreas).default_area().to_bytes(8, "little")


@kernel_symbol("alloc_contig_pages", "alloc_contig_pages_noprof", runs_guest=True)
def alloc_contig_pages(kernel: Kernel, count: U64, flags: U32, node: S32, mask: Ptr) -> int:
    """``struct page`` of ``count`` contiguous pages, or NULL."""
    return _contiguous(kernel, count, 0)


@kernel_symbol("free_contig_range", runs_guest=True)
def free_contig_range(kernel: Kernel, pfn: U64, count: U64) -> None:
    """Free contiguous pages by PFN."""
    _free(kernel, pfn * PAGE_SIZE, count, "free_contig_range")
