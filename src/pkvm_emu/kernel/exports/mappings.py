"""Pages put into the mappings of a driver's ``mmap`` (``mm/memory.c``, ``mm/vmalloc.c``)."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENXIO

from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.fs.mapping import Mappings, insert_pages
from pkvm_emu.kernel.guest_access import load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.calling import U64, Ptr

_VM_PFNMAP, _VM_IO, _VM_DONTEXPAND, _VM_DONTDUMP, _VM_MIXEDMAP = 0x400, 0x4000, 0x40000, 0x4000000, 0x10000000
_FAULT_NO_PAGE, _FAULT_SIGBUS = 0x100, 0x2


def _mark(kernel: Kernel, vma: int, flags: int) -> None:
    place = vma + file_structs(kernel.generation.kernel).vma.vm_flags
    store_uint(kernel, place, load_u64(kernel, place) | flags, 8)


def _page_prot(kernel: Kernel, vma: int) -> int:
    return load_u64(kernel, vma + file_structs(kernel.generation.kernel).vma.vm_page_prot)


@kernel_symbol("remap_pfn_range", runs_guest=True)
def remap_pfn_range(kernel: Kernel, vma: Ptr, address: U64, pfn: U64, size: U64, prot: U64) -> int:
    """Map physical pages, RAM or a device, into a mapping; 0, or -EINVAL outside it and off page boundaries."""
    size = -(-size // PAGE_SIZE) * PAGE_SIZE
    result = insert_pages(kernel, vma, address, pfn * PAGE_SIZE, size, prot)
    if not result:
        _mark(kernel, vma, _VM_PFNMAP | _VM_IO | _VM_DONTEXPAND | _VM_DONTDUMP)
    return result


@kernel_symbol("vm_iomap_memory", runs_guest=True)
def vm_iomap_memory(kernel: Kernel, vma: Ptr, start: U64, length: U64) -> int:
    """Map the part of a device's memory that the mapping asks for; 0, or -EINVAL where it is too large."""
    rows = file_structs(kernel.generation.kernel).vma
    pages = (start % PAGE_SIZE + length + PAGE_SIZE - 1) // PAGE_SIZE
    offset = load_u64(kernel, vma + rows.vm_pgoff)
    begin, end = (load_u64(kernel, vma + at) for at in (rows.vm_start, rows.vm_end))
    if start + length >= 1 << 64 or offset > pages or (end - begin) // PAGE_SIZE > pages - offset:
        return -EINVAL
    return remap_pfn_range(kernel, vma, begin, start // PAGE_SIZE + offset, end - begin, _page_prot(kernel, vma))


@kernel_symbol("vm_insert_page", runs_guest=True)
def vm_insert_page(kernel: Kernel, vma: Ptr, address: U64, page: Ptr) -> int:
    """Map one page that the driver allocated; 0, -EFAULT (outside), -EINVAL (no page), -EBUSY (one is there)."""
    pa = kernel.part(Vmemmap).physical(page)
    if pa is None:
        return -EINVAL
    result = insert_pages(kernel, vma, address, pa, PAGE_SIZE, _page_prot(kernel, vma))
    if not result:
        _mark(kernel, vma, _VM_MIXEDMAP)
    return result


@kernel_symbol("vmf_insert_pfn", runs_guest=True)
def vmf_insert_pfn(kernel: Kernel, vma: Ptr, address: U64, pfn: U64) -> int:
    """Map one page from a fault handler: ``VM_FAULT_NOPAGE``, or ``VM_FAULT_SIGBUS``."""
    result = insert_pages(kernel, vma, address & -PAGE_SIZE, pfn * PAGE_SIZE, PAGE_SIZE, _page_prot(kernel, vma))
    return _FAULT_NO_PAGE if result in (0, -EBUSY) else _FAULT_SIGBUS


def _map_array(kernel: Kernel, vma: int, pages: int, count: int, offset: int) -> int:
    rows = file_structs(kernel.generation.kernel).vma
    begin, end = (load_u64(kernel, vma + at) for at in (rows.vm_start, rows.vm_end))
    wanted = (end - begin) // PAGE_SIZE
    if offset >= count or wanted > count - offset:
        return -ENXIO
    for index in range(wanted):
        page = load_u64(kernel, pages + 8 * (offset + index))
        result = vm_insert_page(kernel, vma, begin + index * PAGE_SIZE, page)
        if result:
            return result
    return 0


@kernel_symbol("vm_map_pages", runs_guest=True)
def vm_map_pages(kernel: Kernel, vma: Ptr, pages: Ptr, count: U64) -> int:
    """Map an array of pages from the mapping's offset on; 0, -ENXIO where it has too few."""
    rows = file_structs(kernel.generation.kernel).vma
    return _map_array(kernel, vma, pages, count, load_u64(kernel, vma + rows.vm_pgoff))


@kernel_symbol("vm_map_pages_zero", runs_guest=True)
def vm_map_pages_zero(kernel: Kernel, vma: Ptr, pages: Ptr, count: U64) -> int:
    """The same from the first page on."""
    return _map_array(kernel, vma, pages, count, 0)


@kernel_symbol("remap_vmalloc_range", runs_guest=True)
def remap_vmalloc_range(kernel: Kernel, vma: Ptr, address: Ptr, offset: U64) -> int:
    """Map memory of ``vmalloc_user``; 0 or -EINVAL."""
    mapping = kernel.part(Mappings).areas.get(vma)
    if mapping is None or address % PAGE_SIZE:
        return -EINVAL
    for at in range(0, mapping.length, PAGE_SIZE):
        try:
            pa = kernel.memory.to_pa(address + offset * PAGE_SIZE + at)
        except GuestFault:
            return -EINVAL
        result = insert_pages(kernel, vma, mapping.address + at, pa, PAGE_SIZE, 0)
        if result:
            return result
    return 0
