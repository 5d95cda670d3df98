"""vmalloc, vmap, ioremap and memremap (``mm/vmalloc.c``, ``arch/arm64/mm/ioremap.c``, ``kernel/iomem.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load_u64
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.vmalloc import Vmalloc
from pkvm_emu.kernel.vmemmap import Vmemmap
from pkvm_emu.machine.calling import U32, U64, Ptr

_PTE_RDONLY, _PTE_PXN = 1 << 7, 1 << 53
_MEMREMAP_WB, _MEMREMAP_WT = 1, 2
_PHYS_MASK = (1 << 48) - 1
#: Protection by MAIR index (``MT_NORMAL`` ... of arch/arm64/include/asm/memory.h).
_BY_MEMORY_TYPE = {0: "rw", 1: "rw", 2: "nc", 3: "device", 4: "device"}


def protection(pgprot: int) -> str:
    """The kind of mapping that a ``pgprot_t`` asks for."""
    kind = _BY_MEMORY_TYPE.get(pgprot >> 2 & 7, "rw")
    if kind == "rw" and pgprot & _PTE_RDONLY:
        return "ro" if pgprot & _PTE_PXN else "rx"
    return kind


# vmalloc


@kernel_symbol(
    *("vmalloc", "vzalloc", "vmalloc_user", "vmalloc_32", "vmalloc_noprof", "vzalloc_noprof", "vmalloc_user_noprof"),
    *("vmalloc_32_noprof", "vmalloc_node", "vzalloc_node", "vmalloc_node_noprof", "vzalloc_node_noprof"),
    runs_guest=True,
)
def vmalloc(kernel: Kernel, size: U64) -> int:
    """Memory (zeroed, as GKI kernels do), or NULL; 0 bytes and more than there is RAM warn."""
    address = kernel.part(Vmalloc).allocate(size)
    if address is None:
        warn(kernel, "mm/vmalloc.c", f"vmalloc error: size {size}, failed to allocate pages")
        return 0
    return address


@kernel_symbol("__vmalloc", "__vmalloc_noprof", "vmalloc_huge", "vmalloc_huge_noprof", runs_guest=True)
def vmalloc_flags(kernel: Kernel, size: U64, flags: U32) -> int:
    """The same with GFP flags."""
    return vmalloc(kernel, size)


def _release(kernel: Kernel, address: int, function: str) -> None:
    if not address:
        return
    if address % PAGE_SIZE:
        warn(kernel, "mm/vmalloc.c", f"Trying to {function}() bad address ({address:016x})")
    elif not kernel.part(Vmalloc).release(address):
        warn(kernel, "mm/vmalloc.c", f"Trying to {function}() nonexistent vm area ({address:016x})")


@kernel_symbol("vfree", "vfree_atomic", runs_guest=True)
def vfree(kernel: Kernel, address: Ptr) -> None:
    """Free; NULL is ignored, an address without an area warns."""
    _release(kernel, address, "vfree")


@kernel_symbol("vmap", runs_guest=True)
def vmap(kernel: Kernel, pages: Ptr, count: U32, flags: U64, prot: U64) -> int:
    """Map an array of ``struct page`` pointers side by side; NULL for none, or one that is no page."""
    vmemmap = kernel.part(Vmemmap)
    frames = [vmemmap.physical(load_u64(kernel, pages + 8 * index)) for index in range(count)]
    known = [pa for pa in frames if pa is not None]
    if not known or len(known) != len(frames) or len(known) * PAGE_SIZE > kernel.machine.ram.size:
        return 0
    return kernel.part(Vmalloc).map_pages(known, protection(prot))


@kernel_symbol("vmap_pfn", runs_guest=True)
def vmap_pfn(kernel: Kernel, pfns: Ptr, count: U32, prot: U64) -> int:
    """Map PFNs that are not RAM; NULL for one that is."""
    frames = [load_u64(kernel, pfns + 8 * index) * PAGE_SIZE for index in range(count)]
    if not frames or any(pa in kernel.machine.ram for pa in frames):
        return 0
    return kernel.part(Vmalloc).map_pages(frames, protection(prot))


@kernel_symbol("vunmap", runs_guest=True)
def vunmap(kernel: Kernel, address: Ptr) -> None:
    """Remove a mapping of ``vmap``."""
    _release(kernel, address, "vunmap")


@kernel_symbol("vm_map_ram", runs_guest=True)
def vm_map_ram(kernel: Kernel, pages: Ptr, count: U32, node: U32) -> int:
    """Map an array of ``struct page`` pointers."""
    return vmap(kernel, pages, count, 0, 0)


@kernel_symbol("vm_unmap_ram", runs_guest=True)
def vm_unmap_ram(kernel: Kernel, address: Ptr, count: U32) -> None:
    """Remove a mapping of ``vm_map_ram``."""
    _release(kernel, address, "vunmap")


# Devices


@kernel_symbol("ioremap_prot", "__ioremap", runs_guest=True)
def ioremap_prot(kernel: Kernel, pa: U64, size: U64, prot: U64) -> int:
    """Map device memory; NULL for 0 bytes, a range beyond the address width, and RAM (which also warns)."""
    if not size or pa + size - 1 > _PHYS_MASK:
        return 0
    if pa in kernel.machine.ram:
        warn(kernel, "arch/arm64/mm/ioremap.c")
        return 0
    return kernel.part(Vmalloc).map_physical(pa, size, protection(prot))


@kernel_symbol("ioremap_cache", "ioremap_cache_ns", runs_guest=True)
def ioremap_cache(kernel: Kernel, pa: U64, size: U64) -> int:
    """Map normal memory; RAM is in the linear map already."""
    if pa in kernel.machine.ram:
        return kernel.memory.linear_va(pa)
    return kernel.part(Vmalloc).map_physical(pa, size, "rw") if size else 0


@kernel_symbol("ioremap", "ioremap_np", "ioremap_uc", runs_guest=True)
def ioremap(kernel: Kernel, pa: U64, size: U64) -> int:
    """Map device memory (inline in GKI kernels)."""
    return ioremap_prot(kernel, pa, size, 4 << 2)


@kernel_symbol("ioremap_wc", runs_guest=True)
def ioremap_wc(kernel: Kernel, pa: U64, size: U64) -> int:
    """Map as normal non-cacheable memory."""
    return ioremap_prot(kernel, pa, size, 2 << 2)


@kernel_symbol("iounmap", "__iounmap", runs_guest=True)
def iounmap(kernel: Kernel, address: Ptr) -> None:
    """Remove a mapping of ``ioremap``; addresses outside the vmalloc area are ignored."""
    if kernel.part(Vmalloc).contains(address):
        _release(kernel, address & -PAGE_SIZE, "vunmap")


@kernel_symbol("memremap", runs_guest=True)
def memremap(kernel: Kernel, pa: U64, size: U64, flags: U64) -> int:
    """Map memory write-back, write-through or write-combining; NULL without a flag. RAM write-back is the linear map."""
    if not flags or not size:
        return 0
    is_ram = pa in kernel.machine.ram
    if is_ram and flags & _MEMREMAP_WB:
        return kernel.memory.linear_va(pa)
    if is_ram:
        warn(kernel, "kernel/iomem.c", f"memremap attempted on ram {pa:#018x} size: {size:#x}")
        return 0
    prot = "rw" if flags & _MEMREMAP_WB else "device" if flags & _MEMREMAP_WT else "nc"
    return kernel.part(Vmalloc).map_physical(pa, size, prot)


@kernel_symbol("memunmap", runs_guest=True)
def memunmap(kernel: Kernel, address: Ptr) -> None:
    """Remove a mapping of ``memremap``; the linear map stays."""
    if kernel.part(Vmalloc).contains(address):
        _release(kernel, address & -PAGE_SIZE, "vunmap")
