"""Ops about memory: private mappings, module pages, the linear map, ownership transitions, stage-2 permissions.

Page frame numbers count 4 KiB pages; ``prot`` is the 64-bit ``enum kvm_pgtable_prot``; results are 0 or a negative errno
unless said otherwise. Source: arch/arm64/kvm/hyp/nvhe/{mm,mem_protect,modules}.c.
"""

from __future__ import annotations

from errno import ENOMEM, ERANGE

from pkvm_emu.hyp import layout
from pkvm_emu.hyp.errors import HypBug, HypFault
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U64, Bool, Ptr

PAGE_SIZE, PAGE_SHIFT, PAGE_MASK = 4096, 12, 4095
_U64 = (1 << 64) - 1
_CACHE_LINE = 64


def map_private(hyp: Hypervisor, phys: int, size: int, prot: int) -> tuple[int, int]:
    """Map physical memory at the next address of the private range: ``(errno, hyp VA)``.

    The address space of a failed mapping is not given back, as on the device.
    """
    offset = phys & PAGE_MASK
    length = (size + offset + PAGE_MASK) & ~PAGE_MASK & _U64
    base = hyp.reserve_private(length)
    if base is None:
        return -ENOMEM, 0
    error = hyp.stage1.map(base, length, phys - offset, prot)
    return error, base + offset if not error else 0


@op("create_private_mapping")
def create_private_mapping(hyp: Hypervisor, phys: U64, size: U64, prot: U64, haddr: Ptr) -> int:
    """Map ``size`` bytes of physical memory; stores the hyp VA (page offset kept) at ``*haddr``.

    Ownership is neither checked nor changed. -ENOMEM when the range would cross the vmemmap, -EINVAL for a protection that
    EL2 does not have; ``*haddr`` stays as it was then.
    """
    error, va = map_private(hyp, phys, size, prot)
    if not error:
        hyp.write_u64(haddr, va)
    return error


@op("alloc_module_va")
def alloc_module_va(hyp: Hypervisor, pages: U64) -> int:
    """Reserve address space for ``pages`` pages; the address.

    When the reservation fails the current end of the range comes back all the same: non-NULL proves nothing.
    """
    base = hyp.reserve_private(pages << PAGE_SHIFT & _U64)
    return hyp.private_cursor if base is None else base


@op("map_module_page")
def map_module_page(hyp: Hypervisor, pfn: U64, va: Ptr, prot: U64, is_protected: Bool) -> int:
    """Map page ``pfn`` at ``va``; with ``is_protected`` false it is donated by the host first.

    A mapping that fails gives the donated page back.
    """
    if not is_protected:
        error = hyp.ownership.host_donate_hyp(pfn, 1, origin=hyp.caller())
        if error:
            return error
    error = hyp.stage1.map(va, PAGE_SIZE, pfn << PAGE_SHIFT, prot)
    if error and not is_protected and hyp.ownership.hyp_donate_host(pfn, 1, origin=hyp.caller()):
        raise HypBug(f"map_module_page: page {pfn:#x} could not be given back")
    return error


@op("map_module_pages")
def map_module_pages(hyp: Hypervisor, pfn: U64, va: Ptr, pages: U64, prot: U64, is_protected: Bool) -> int:
    """``map_module_page`` over ``pages`` pages (android16, later releases): all are donated, then all are mapped."""
    size = pages << PAGE_SHIFT & _U64
    if not is_protected:
        error = hyp.ownership.host_donate_hyp(pfn, pages, origin=hyp.caller())
        if error:
            return error
    error = hyp.stage1.map(va, size, pfn << PAGE_SHIFT & _U64, prot)
    if error and not is_protected and hyp.ownership.hyp_donate_host(pfn, pages, origin=hyp.caller()):
        raise HypBug(f"map_module_pages: {pages} pages from {pfn:#x} could not be given back")
    return error


@op("unmap_module_pages")
def unmap_module_pages(hyp: Hypervisor, pfn: U64, va: Ptr, pages: U64) -> None:
    """Give ``pages`` pages back to the host and unmap them at ``va`` (android16, later releases); or a hypervisor BUG."""
    if hyp.ownership.hyp_donate_host(pfn, pages, origin=hyp.caller()):
        raise HypBug(f"unmap_module_pages: {hyp.ownership.last_refusal}")
    if hyp.stage1.unmap(va, pages << PAGE_SHIFT & _U64) != pages << PAGE_SHIFT & _U64:
        raise HypBug(f"unmap_module_pages: not all of {pages} pages at {va:#x} are mapped")


@op("pkvm_unuse_dma")
def pkvm_unuse_dma(hyp: Hypervisor, phys: U64, size: U64) -> int:
    """Drop the DMA references of ``size`` bytes (page aligned); a page without one is a hypervisor BUG (android16)."""
    by_guest = hyp.part(Iommu).guest is not None
    return hyp.ownership.unuse_dma(phys, size, origin=hyp.caller(), by_guest=by_guest)


@op("hyp_pa")
def hyp_pa(hyp: Hypervisor, va: Ptr) -> int:
    """Physical address of a linear-map VA (arithmetic; garbage for any other VA)."""
    return hyp.stage1.pa_of(va)


@op("hyp_va")
def hyp_va(hyp: Hypervisor, pa: U64) -> int:
    """Linear-map VA of a physical address (arithmetic)."""
    return hyp.stage1.va_of(pa)


@op("kern_hyp_va")
def kern_hyp_va(hyp: Hypervisor, va: Ptr) -> int:
    """Hyp VA of a kernel linear-map VA (arithmetic; a hyp VA stays as it is)."""
    return layout.kern_hyp_va(va)


@op("host_share_hyp")
def host_share_hyp(hyp: Hypervisor, pfn: U64) -> int:
    """Share one page of the host with the hypervisor: mapped RW in the linear map."""
    return hyp.ownership.host_share_hyp(pfn, origin=hyp.caller())


@op("host_unshare_hyp")
def host_unshare_hyp(hyp: Hypervisor, pfn: U64) -> int:
    """End the sharing of one page; a pinned page is refused."""
    return hyp.ownership.host_unshare_hyp(pfn, origin=hyp.caller())


@op("pin_shared_mem")
def pin_shared_mem(hyp: Hypervisor, start: Ptr, end: Ptr) -> int:
    """Pin the shared pages of ``[start, end)`` (hyp VAs), so that the host cannot end the sharing."""
    return hyp.ownership.pin_shared_mem(start, end, origin=hyp.caller())


@op("unpin_shared_mem")
def unpin_shared_mem(hyp: Hypervisor, start: Ptr, end: Ptr) -> None:
    """Undo a pin; of a page that is not pinned: a hypervisor BUG."""
    hyp.ownership.unpin_shared_mem(start, end, origin=hyp.caller())


@op("hyp_donate_host")
def hyp_donate_host(hyp: Hypervisor, pfn: U64, pages: U64) -> int:
    """Give pages back to the host; they are not zeroed."""
    return hyp.ownership.hyp_donate_host(pfn, pages, origin=hyp.caller())


@op("host_stage2_get_leaf")
def host_stage2_get_leaf(hyp: Hypervisor, phys: U64, pte: Ptr, level: Ptr) -> int:
    """Store the raw stage-2 entry of a physical address at ``*pte`` and its level at ``*level``.

    The level is a u32 on android14 and android15, one byte on android16. Beyond the IPA size: -ERANGE.
    """
    leaf = hyp.ownership.host_stage2_get_leaf(phys)
    if leaf is None:
        return -ERANGE
    hyp.write_u64(pte, leaf.descriptor)
    hyp.write(level, leaf.level.to_bytes(hyp.generation.leaf_level_bytes, "little"))
    return 0


@op("linear_map_early")
def linear_map_early(hyp: Hypervisor, phys: U64, size: U64, prot: U64) -> int:
    """Map a range at its linear-map VA and return that; NULL when unaligned or when it cannot be mapped."""
    return hyp.ownership.linear_map_early(phys, size, prot)


@op("linear_unmap_early")
def linear_unmap_early(hyp: Hypervisor, va: Ptr, size: U64) -> None:
    """Undo ``linear_map_early``; what is left mapped at deprivilege is a hypervisor BUG."""
    hyp.ownership.linear_unmap_early(va, size)


@op("flush_dcache_to_poc")
def flush_dcache_to_poc(hyp: Hypervisor, va: Ptr, size: U64) -> None:
    """Clean and invalidate a range: the emulated caches are coherent, so only a bad address has an effect."""
    line = va & ~(_CACHE_LINE - 1)
    for address in [line, *range((line | PAGE_MASK) + 1, va + size, PAGE_SIZE)] if size else []:
        if hyp.to_pa(address) is None:
            raise HypFault(f"flush_dcache_to_poc({va:#x}, {size:#x}): {address:#x} is not mapped", address, False)


@op("host_donate_hyp")
def host_donate_hyp(hyp: Hypervisor, pfn: U64, pages: U64, accept_mmio: Bool) -> int:
    """Take pages from the host; mapped RW at EL2 (device memory for MMIO).

    android14 takes no ``accept_mmio`` and always accepts MMIO; later generations refuse MMIO without it.
    """
    return hyp.ownership.host_donate_hyp(pfn, pages, accept_mmio, origin=hyp.caller())


@op("host_donate_hyp_prot")
def host_donate_hyp_prot(hyp: Hypervisor, pfn: U64, pages: U64, accept_mmio: Bool, prot: U64) -> int:
    """As ``host_donate_hyp``, mapped with ``prot`` at EL2; with another than RW the page can never be given back."""
    return hyp.ownership.host_donate_hyp(pfn, pages, accept_mmio, prot, origin=hyp.caller())


@op("host_stage2_mod_prot")
def host_stage2_mod_prot(hyp: Hypervisor, pfn: U64, prot: U64, pages: U64, update_iommu: Bool) -> int:
    """Change the host's stage-2 permissions; android14 takes ``(pfn, prot)`` for one page."""
    if not hyp.generation.ownership.mod_prot_takes_range:
        pages, update_iommu = 1, False
    return hyp.ownership.host_stage2_mod_prot(pfn, prot, pages, update_iommu, origin=hyp.caller())


@op("host_stage2_mod_prot_range")
def host_stage2_mod_prot_range(hyp: Hypervisor, pfn: U64, prot: U64, pages: U64) -> int:
    """The range form that a later android14 release put into a reserve slot."""
    return hyp.ownership.host_stage2_mod_prot(pfn, prot, pages, False, origin=hyp.caller())


@op("host_stage2_enable_lazy_pte")
def host_stage2_enable_lazy_pte(hyp: Hypervisor, pfn: U64, pages: U64) -> int:
    """Empty the host's entries of a range it owns; its faults fill them again."""
    return hyp.ownership.host_stage2_enable_lazy_pte(pfn, pages, origin=hyp.caller())


@op("host_stage2_disable_lazy_pte")
def host_stage2_disable_lazy_pte(hyp: Hypervisor, pfn: U64, pages: U64) -> int:
    """Undo ``host_stage2_enable_lazy_pte``; android16 maps the range at once."""
    return hyp.ownership.host_stage2_disable_lazy_pte(pfn, pages, origin=hyp.caller())


@op("host_donate_sglist_hyp")
def host_donate_sglist_hyp(hyp: Hypervisor, entries: Ptr, count: U64) -> int:
    """Take a list of ``{40-bit pfn, u8 order}`` entries (6 bytes each) from the host, all or none."""
    raw = bytearray()
    for index in range(count):
        raw += hyp.load(entries + 6 * index, 6, f"host_donate_sglist_hyp reads entry {index} of {count}")
    pages = [(int.from_bytes(raw[i : i + 5], "little"), raw[i + 5]) for i in range(0, len(raw), 6)]
    return hyp.ownership.host_donate_sglist_hyp(pages, origin=hyp.caller())
