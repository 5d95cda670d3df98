"""The page allocator's exports (``mm/page_alloc.c``, ``mm/util.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import HostFault, access_oops, load_string, misuse
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.page_allocator import MAX_ORDER, PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.vmalloc import Vmalloc
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.kernel.vsprintf_env import GuestFault
from pkvm_emu.machine.calling import U32, U64, Ptr

#: A data abort by DC ZVA from EL1 (CM, WnR), level 3 translation, marked with S1PTW by the hypervisor.
_CLEAR_PAGE_ABORT = 0x25 << 26 | 1 << 25 | 1 << 8 | 1 << 7 | 1 << 6 | 7


def allocate(kernel: Kernel, flags: int, order: int) -> int | None:
    """A block for the guest: PA, zeroed as GKI kernels do, with its ``struct page`` ready; None without memory."""
    facts = line_facts(kernel.generation.kernel)
    if order > MAX_ORDER:
        if not flags & facts.gfp_nowarn:
            warn(kernel, "mm/page_alloc.c __alloc_pages")
        return None
    always = kernel.command_line.get("init_on_alloc", "1") not in ("0", "n", "N", "off")
    is_zeroed = always or bool(flags & facts.gfp_zero)
    pa = kernel.pages.alloc_pages(order, zero=is_zeroed)
    if pa is not None:
        if is_zeroed:
            _refuse_taken_pages(kernel, pa, order)
        kernel.part(Vmemmap).set_references(pa, 1)
    return pa


def _refuse_taken_pages(kernel: Kernel, pa: int, order: int) -> None:
    """A page that was donated and then freed kills the kernel when it is given out again: ``clear_page`` faults."""
    for page in range(pa, pa + (PAGE_SIZE << order), PAGE_SIZE):
        if kernel.is_taken_away(page):
            va = kernel.memory.linear_va(page)
            raise access_oops(kernel, "clear_page", HostFault(va, PAGE_SIZE, _CLEAR_PAGE_ABORT))


def release(kernel: Kernel, pa: int, order: int, name: str) -> None:
    """Drop the reference of a block and free it with the last one.

    Raises:
        ModuleError: it is not allocated, or with another order: a device's free lists are corrupted then.
    """
    known = kernel.pages.order_of(pa)
    if known != order:
        address = kernel.memory.linear_va(pa)
        what = "is not allocated" if known is None else f"was allocated with order {known}"
        raise misuse(kernel, f"{name} of {address:#x} (PA {pa:#x}) with order {order}: the block {what}")
    if kernel.part(Vmemmap).put(pa):
        kernel.pages.free_pages(pa, order)


def _linear(kernel: Kernel, address: int, name: str) -> int:
    pa = kernel.memory.linear_pa(address)
    if pa not in kernel.machine.ram or pa % PAGE_SIZE:
        raise misuse(kernel, f"{name}({address:#x}): that is no page of the linear map")
    return pa


def _of_page(kernel: Kernel, page: int, name: str) -> int:
    pa = kernel.part(Vmemmap).physical(page)
    if pa is None:
        raise misuse(kernel, f"{name}({page:#x}): that is no struct page of RAM")
    return pa


# By address


@kernel_symbol("__get_free_pages", "get_free_pages_noprof", runs_guest=True)
def get_free_pages(kernel: Kernel, flags: U32, order: U32) -> int:
    """Linear address of ``2**order`` pages, or 0."""
    pa = allocate(kernel, flags, order)
    return kernel.memory.linear_va(pa) if pa is not None else 0


@kernel_symbol("get_zeroed_page", "get_zeroed_page_noprof", runs_guest=True)
def get_zeroed_page(kernel: Kernel, flags: U32) -> int:
    """Linear address of a zeroed page, or 0."""
    return get_free_pages(kernel, flags | line_facts(kernel.generation.kernel).gfp_zero, 0)


@kernel_symbol("free_pages", runs_guest=True)
def free_pages(kernel: Kernel, address: Ptr, order: U32) -> None:
    """Free; 0 is ignored."""
    if address:
        release(kernel, _linear(kernel, address, "free_pages"), order, "free_pages")


@kernel_symbol("alloc_pages_exact", "alloc_pages_exact_noprof", runs_guest=True)
def alloc_pages_exact(kernel: Kernel, size: U64, flags: U32) -> int:
    """Linear address of exactly the pages that ``size`` bytes take, or 0."""
    if not size:
        return 0
    count = -(-size // PAGE_SIZE)
    pa = allocate(kernel, flags, (count - 1).bit_length())
    if pa is None:
        return 0
    order = kernel.pages.order_of(pa)
    assert order is not None
    split(kernel, pa, order)
    for page in range(pa + count * PAGE_SIZE, pa + (PAGE_SIZE << order), PAGE_SIZE):
        kernel.pages.free_pages(page, 0)
    return kernel.memory.linear_va(pa)


def split(kernel: Kernel, pa: int, order: int) -> None:
    kernel.pages.split(pa)
    for page in range(pa, pa + (PAGE_SIZE << order), PAGE_SIZE):
        kernel.part(Vmemmap).set_references(page, 1)


@kernel_symbol("free_pages_exact", runs_guest=True)
def free_pages_exact(kernel: Kernel, address: Ptr, size: U64) -> None:
    """Free what ``alloc_pages_exact`` gave."""
    for offset in range(0, -(-size // PAGE_SIZE) * PAGE_SIZE, PAGE_SIZE):
        release(kernel, _linear(kernel, address + offset, "free_pages_exact"), 0, "free_pages_exact")


# By struct page


@kernel_symbol(
    *("alloc_pages", "__alloc_pages", "alloc_pages_noprof", "__alloc_pages_noprof", "__folio_alloc"),
    *("folio_alloc", "folio_alloc_noprof", "__folio_alloc_noprof"),
    runs_guest=True,
)
def alloc_pages(kernel: Kernel, flags: U32, order: U32) -> int:
    """``struct page`` of ``2**order`` pages, or NULL (a node and its mask may follow the arguments)."""
    pa = allocate(kernel, flags, order)
    return kernel.part(Vmemmap).page(pa) if pa is not None else 0


@kernel_symbol("__free_pages", runs_guest=True)
def free_page_block(kernel: Kernel, page: Ptr, order: U32) -> None:
    """Drop a reference of the block; it is free with the last one."""
    release(kernel, _of_page(kernel, page, "__free_pages"), order, "__free_pages")


@kernel_symbol("__put_page", "__folio_put", runs_guest=True)
def folio_put(kernel: Kernel, page: Ptr) -> None:
    """The last reference is gone (``put_page`` has counted down): free the block."""
    pa = _of_page(kernel, page, "put_page")
    order = kernel.pages.order_of(pa)
    if order is None:
        raise misuse(kernel, f"put_page of PA {pa:#x}: the page is not allocated")
    kernel.pages.free_pages(pa, order)


@kernel_symbol("split_page", runs_guest=True)
def split_page(kernel: Kernel, page: Ptr, order: U32) -> None:
    """Make single pages of a block."""
    pa = _of_page(kernel, page, "split_page")
    if kernel.pages.order_of(pa) != order:
        raise misuse(kernel, f"split_page of PA {pa:#x}: no block of order {order} is allocated there")
    split(kernel, pa, order)


@kernel_symbol("vmalloc_to_page")
def vmalloc_to_page(kernel: Kernel, address: Ptr) -> int:
    """``struct page`` behind a vmalloc or module address, or NULL."""
    try:
        pa = kernel.memory.to_pa(address)
    except GuestFault:
        return 0
    return kernel.part(Vmemmap).page(pa & -PAGE_SIZE) if pa in kernel.machine.ram else 0


@kernel_symbol("vmalloc_to_pfn")
def vmalloc_to_pfn(kernel: Kernel, address: Ptr) -> int:
    """PFN behind a vmalloc address (of physical address 0 where nothing is mapped)."""
    try:
        return kernel.memory.to_pa(address) // PAGE_SIZE
    except GuestFault:
        return 0


@kernel_symbol("pfn_is_map_memory", "pfn_valid")
def pfn_is_map_memory(kernel: Kernel, pfn: U64) -> int:
    """Whether a PFN is RAM."""
    return pfn * PAGE_SIZE in kernel.machine.ram


@kernel_symbol("memblock_start_of_DRAM")
def memblock_start_of_dram(kernel: Kernel) -> int:
    """Physical start of RAM."""
    return kernel.machine.ram.base


@kernel_symbol("memblock_end_of_DRAM")
def memblock_end_of_dram(kernel: Kernel) -> int:
    """Physical end of RAM."""
    return kernel.machine.ram.end


@kernel_symbol("is_vmalloc_addr")
def is_vmalloc_addr(kernel: Kernel, address: Ptr) -> int:
    """Whether an address lies in the vmalloc area."""
    return kernel.part(Vmalloc).contains(address)


@kernel_symbol("si_meminfo", runs_guest=True)
def si_meminfo(kernel: Kernel, info: Ptr) -> None:
    """Fill ``totalram``, ``freeram`` and ``mem_unit`` of a ``struct sysinfo``."""
    pages = kernel.machine.ram.size // PAGE_SIZE
    kernel.memory.write_u64(info + 32, pages)
    kernel.memory.write_u64(info + 40, (kernel.hyp_reserved - kernel.pages.next_fresh) // PAGE_SIZE)
    kernel.memory.write_u32(info + 104, PAGE_SIZE)


@kernel_symbol("dump_page", runs_guest=True)
def dump_page(kernel: Kernel, page: Ptr, reason: Ptr) -> None:
    """Describe a page in the log."""
    pa = _of_page(kernel, page, "dump_page")
    kernel.log.write(f"page: pfn:{pa // PAGE_SIZE:#x}", level=4)
    if reason:
        kernel.log.write(f"page dumped because: {load_string(kernel, reason).decode('latin-1')}", level=4)
