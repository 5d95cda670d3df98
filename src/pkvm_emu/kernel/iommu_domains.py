"""Domains of the host's IOMMU core: mapping and unmapping through the driver's functions, and the DMA addresses that are in use.

What the kernel allocates DMA addresses by (per-CPU caches of freed ranges, a cached search position) only decides which free range
is taken; here it is always the highest one. Unmapping is strict: the driver flushes before the address is free. Sources:
``drivers/iommu/{iommu,dma-iommu,iova}.c`` of android16-6.12.
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOMEM
from typing import TYPE_CHECKING

from pkvm_emu.abi.iommu_structs import IOMMU_STRUCTS, IommuStructs
from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.iommu_operations import domain_operation
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

DOMAIN_IDENTITY, DOMAIN_DMA, DOMAIN_PAGING = 4, 3, 1
READ, WRITE, CACHE = 1, 2, 4
_GFP_KERNEL, _GFP_ATOMIC = 0xCC0, 0x820
_ERROR = 3
_FIRST_IOVA_PAGE = 1
#: ``1 << (IOVA_RANGE_CACHE_MAX_SIZE - 1)``
_CACHED_PAGES = 32


def structs(kernel: Kernel) -> IommuStructs:
    """The layouts of the kernel line.

    Raises:
        ModuleError: they are not known.
    """
    line = kernel.generation.kernel
    found = IOMMU_STRUCTS.get(line)
    if found is None:
        raise ModuleError(
            f"a device behind an IOMMU of the host's own core: the layout of struct dev_iommu of {line[0]}.{line[1]} is not known"
        )
    return found


def pick_size(bitmap: int, iova: int, pa: int, size: int) -> tuple[int, int]:
    """``iommu_pgsize``: the page size to map next and how many pages of it.

    Args:
        bitmap: page sizes of the domain, a bit each.
        iova: where in the domain; aligned to the smallest page.
        pa: what is mapped there; ``iova`` itself where something is unmapped.
        size: bytes that are left.
    """
    merged = pa | iova
    fitting = bitmap & (1 << size.bit_length()) - 1
    if merged:
        fitting &= 2 * (merged & -merged) - 1
    page = 1 << fitting.bit_length() - 1
    larger = bitmap & ~(2 * page - 1)
    if larger:
        following = larger & -larger
        if not (iova ^ pa) & following - 1:
            # Up to where a larger page begins.
            offset = following - (merged & following - 1)
            if offset + following <= size:
                size = offset
    return page, size // page


@kernel_part
class IommuDomains(State):
    """The domains that devices are in.

    Args:
        kernel: whose domains.

    Attributes:
        ranges: DMA addresses in use: bytes by ``struct iommu_domain`` and start.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.iommu_domains")
        self._kernel = kernel
        self.ranges: StateDict[tuple[int, int], int] = StateDict(kernel.machine.journal, "kernel.iommu_domains.ranges")

    # What the driver wrote

    def kind(self, domain: int) -> int:
        """``type``: :data:`DOMAIN_IDENTITY`, :data:`DOMAIN_DMA` and so on."""
        return self._kernel.memory.read_u32(domain + structs(self._kernel).domain_type)

    def page_sizes(self, domain: int) -> int:
        """``pgsize_bitmap``"""
        return self._kernel.memory.read_u64(domain + structs(self._kernel).domain_pgsize_bitmap)

    def operation(self, domain: int, name: str) -> int:
        """A member of its ``struct iommu_domain_ops``; 0 without."""
        rows, memory = structs(self._kernel), self._kernel.memory
        table = memory.read_u64(domain + rows.domain_operations)
        return domain_operation(self._kernel, rows, table, name) if table else 0

    # Mappings

    def map(self, domain: int, iova: int, pa: int, size: int, prot: int, gfp: int = _GFP_ATOMIC) -> int:
        """``iommu_map``: 0, -EINVAL (not aligned, no paging domain), -ENODEV, or what the driver returned.

        After an error nothing is mapped.
        """
        kernel, bitmap = self._kernel, self.page_sizes(domain)
        function = self.operation(domain, "map_pages")
        if not function or not bitmap:
            return -ENODEV
        if not self.kind(domain) & DOMAIN_PAGING:
            return -EINVAL
        least = bitmap & -bitmap
        if (iova | pa | size) & least - 1:
            text = f"unaligned: iova 0x{iova:x} pa {pa:#018x} size 0x{size:x} min_pagesz 0x{least:x}"
            kernel.log.write(f"iommu: {text}", _ERROR)
            return -EINVAL
        slab = kernel.part(Slab)
        total = slab.kmalloc(8, _GFP_KERNEL)
        if not total:
            return -ENOMEM
        done, result = 0, 0
        while done < size and not result:
            page, count = pick_size(bitmap, iova + done, pa + done, size - done)
            kernel.memory.write_u64(total, 0)
            result = kernel.call_s32(function, domain, iova + done, pa + done, page, count, prot, gfp, total)
            done += kernel.memory.read_u64(total)
        slab.kfree(total)
        sync = self.operation(domain, "iotlb_sync_map")
        if not result and sync:
            result = kernel.call_s32(sync, domain, iova, size)
        if result:
            self.unmap(domain, iova, done)
        return result

    def unmap(self, domain: int, iova: int, size: int) -> int:
        """``iommu_unmap``: bytes that were unmapped, and flushed."""
        kernel, rows, bitmap = self._kernel, structs(self._kernel), self.page_sizes(domain)
        function = self.operation(domain, "unmap_pages")
        if not function or not bitmap or not self.kind(domain) & DOMAIN_PAGING:
            return 0
        slab = kernel.part(Slab)
        gather = slab.kmalloc(rows.gather_size, _GFP_KERNEL)
        if not gather:
            return 0
        empty = gather + rows.gather_freelist
        kernel.memory.write(gather, bytes(rows.gather_size))
        # iommu_iotlb_gather_init(): nothing gathered yet.
        kernel.memory.write_u64(gather, (1 << 64) - 1)
        for link in (0, 8):
            kernel.memory.write_u64(empty + link, empty)
        done = 0
        while done < size:
            page, count = pick_size(bitmap, iova + done, iova + done, size - done)
            part = kernel.call(function, domain, iova + done, page, count, gather)
            if not part:
                break
            done += part
        sync = self.operation(domain, "iotlb_sync")
        if sync:
            kernel.call(sync, domain, gather)
        slab.kfree(gather)
        return done

    def physical(self, domain: int, iova: int) -> int:
        """``iommu_iova_to_phys``; 0 where nothing is mapped."""
        if self.kind(domain) == DOMAIN_IDENTITY:
            return iova
        function = self.operation(domain, "iova_to_phys")
        return self._kernel.call(function, domain, iova) if function else 0

    # DMA addresses

    def take(self, domain: int, size: int, limit: int) -> int | None:
        """A range of DMA addresses up to ``limit``, aligned to its size; None where none is free."""
        rows, memory = structs(self._kernel), self._kernel.memory
        least = self.page_sizes(domain) & -self.page_sizes(domain)
        if memory.read(domain + rows.force_aperture, 1) != b"\0":
            limit = min(limit, memory.read_u64(domain + rows.aperture_end))
        first = max(_FIRST_IOVA_PAGE * least, memory.read_u64(domain + rows.aperture_start))
        align = least << (-(-size // least) - 1).bit_length()
        # What the caches of freed ranges could hold is taken in powers of two.
        size = align if size < least * _CACHED_PAGES else size
        start = limit + 1 - size & -align
        used = sorted((taken, length) for (owner, taken), length in self.ranges.items() if owner == domain)
        for taken, length in reversed(used):
            if start >= taken + length:
                break
            if start + size > taken:
                start = taken - size & -align
        if start < first:
            return None
        self.ranges[domain, start] = size
        return start

    def reserve(self, domain: int, start: int, size: int) -> None:
        """Keep a range from being given out."""
        self.ranges[domain, start] = size

    def give_back(self, domain: int, start: int) -> bool:
        """A range is free again; whether it was in use."""
        return self.ranges.pop((domain, start), None) is not None

    def forget(self, domain: int) -> None:
        """The domain is freed: so are its addresses; the driver's ``free`` runs."""
        for key in [key for key in self.ranges if key[0] == domain]:
            del self.ranges[key]
        function = self.operation(domain, "free")
        if function:
            self._kernel.call(function, domain)
