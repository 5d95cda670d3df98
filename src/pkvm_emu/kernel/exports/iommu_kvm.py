"""IOMMU drivers at EL2: the exports of android15 and android16 (``kvm_iommu_*``).

The calls that may need memory at EL2 top it up and try again, as the kernel's do. Sources: arch/arm64/kvm/{iommu,mmu}.c,
arch/arm64/include/asm/kvm_host.h.
"""

from __future__ import annotations

from errno import E2BIG, EBUSY, EINVAL, ENODEV, ENOMEM

from pkvm_emu.hyp.iommu_rules import RULES
from pkvm_emu.kernel.exports import pages
from pkvm_emu.kernel.guest_access import misuse
from pkvm_emu.kernel.iommu import DEVICE_ID, NUM_IDS, IommuDrivers, call_hyp, driver_function, init_driver, s32, top_up
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import bug, warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import S32, U32, U64, Ptr

_PAGE_SIZE, _PAGE_SHIFT = 4096, 12
_GFP_KERNEL = 0xCC0
_U64 = (1 << 64) - 1
#: struct kvm_hyp_memcache: head, nr_pages, flags, and on android16 a pointer that only EL1 uses.
_HEAD, _NR_PAGES, _MAPPING, _MAPPING_SIZE = 0, 8, 24, 64
_SG_SIZE = 24


def _rule(kernel: Kernel, name: str) -> bool:
    """A rule of the generation's IOMMU core; android14 has another core, for which none of them holds."""
    rules = RULES.get(kernel.generation.layout)
    return rules is not None and bool(getattr(rules, name))


def _refuse_null(kernel: Kernel, name: str) -> int:
    """What a NULL argument does: -EINVAL and a WARN on android16, a BUG before."""
    if _rule(kernel, "null_is_refused"):
        warn(kernel, f"arch/arm64/kvm/iommu.c {name}")
        return -EINVAL
    raise bug(kernel, f"arch/arm64/kvm/iommu.c {name}")


@kernel_symbol("kvm_iommu_register_driver")
def kvm_iommu_register_driver(kernel: Kernel, driver: Ptr) -> int:
    """Register a ``struct kvm_iommu_driver``; its ``init_driver`` runs before the host is deprivileged. 0 or -EBUSY."""
    drivers = kernel.part(IommuDrivers)
    if not driver:
        return _refuse_null(kernel, "kvm_iommu_register_driver")
    if drivers.driver:
        return -EBUSY
    drivers.driver = driver
    return 0


@kernel_symbol("kvm_iommu_init_driver", runs_guest=True)
def kvm_iommu_init_driver(kernel: Kernel) -> int:
    """Start the registered driver; 0 or -errno (android16)."""
    return init_driver(kernel)


@kernel_symbol("kvm_iommu_init_hyp", runs_guest=True)
def kvm_iommu_init_hyp(kernel: Kernel, ops: Ptr, cache: Ptr, argument: U64) -> int | tuple[int, ...]:
    """Initialise the EL2 half: hyp VA of its ``struct kvm_iommu_ops``, pages for the identity map. 0 or -errno.

    android15 passes ``argument`` to the EL2 ``init``. x1 to x3 are left as the hypercall leaves them: the next hypercall of
    a shipped driver answers in x0 only, and its EL1 half takes what is in x1.
    """
    if not ops:
        return -EINVAL if _rule(kernel, "null_is_refused") else _refuse_null(kernel, "kvm_iommu_init_hyp")
    head, count = (kernel.memory.read_u64(cache + at) for at in (_HEAD, _NR_PAGES))
    further = (argument,) if RULES[kernel.generation.layout].init_optional else ()
    result = call_hyp(kernel, "iommu_init", ops, head, count, *further)
    return (s32(result[1]), *result[1:4])


@kernel_symbol("topup_hyp_memcache", runs_guest=True)
def topup_hyp_memcache(kernel: Kernel, cache: Ptr, minimum: U64, order: U64) -> int:
    """Fill a ``struct kvm_hyp_memcache`` to ``minimum`` blocks of ``2**order`` pages: 0, -E2BIG or -ENOMEM."""
    if not kernel.protected:
        return 0
    if order > _PAGE_SHIFT:
        return -E2BIG
    memory = kernel.memory
    if _rule(kernel, "memcache_has_mapping") and not memory.read_u64(cache + _MAPPING):
        mapping = kernel.part(Slab).kmalloc(_MAPPING_SIZE, _GFP_KERNEL)
        if not mapping:
            return -ENOMEM
        memory.write(mapping, bytes(_MAPPING_SIZE))
        memory.write_u64(cache + _MAPPING, mapping)
    while memory.read_u64(cache + _NR_PAGES) < minimum:
        pa = pages.allocate(kernel, _GFP_KERNEL, order)
        if pa is None:
            return -ENOMEM
        kernel.machine.ram.write_u64(pa, memory.read_u64(cache + _HEAD))
        memory.write_u64(cache + _HEAD, pa | order)
        memory.write_u64(cache + _NR_PAGES, memory.read_u64(cache + _NR_PAGES) + 1)
    return 0


# Domains and devices


def _with_top_up(kernel: Kernel, name: str, *args: int) -> int:
    """A hypercall, tried again as long as it fails and the memory that it wants can be had."""
    while True:
        result = call_hyp(kernel, name, *args)
        if not s32(result[1]) or top_up(kernel, result, _GFP_KERNEL):
            return s32(result[1])


@kernel_symbol("kvm_iommu_alloc_domain", runs_guest=True)
def kvm_iommu_alloc_domain(kernel: Kernel, domain: U32, kind: U32) -> int:
    """Make a domain at EL2; 0 or -errno."""
    return _with_top_up(kernel, "host_iommu_alloc_domain", domain, kind)


@kernel_symbol("kvm_iommu_free_domain", runs_guest=True)
def kvm_iommu_free_domain(kernel: Kernel, domain: U32) -> int:
    """Free a domain; 0 or -errno."""
    return s32(call_hyp(kernel, "host_iommu_free_domain", domain)[1])


@kernel_symbol("kvm_iommu_attach_dev", runs_guest=True)
def kvm_iommu_attach_dev(
    kernel: Kernel, iommu: U32, domain: U32, endpoint: U32, pasid: U32, ssid_bits: U32, flags: U64
) -> int:
    """Attach a device; 0 or -errno."""
    return _with_top_up(kernel, "host_iommu_attach_dev", iommu, domain, endpoint, pasid, ssid_bits, flags)


@kernel_symbol("kvm_iommu_detach_dev", runs_guest=True)
def kvm_iommu_detach_dev(kernel: Kernel, iommu: U32, domain: U32, endpoint: U32, pasid: U32) -> int:
    """Detach a device; 0 or -errno."""
    return s32(call_hyp(kernel, "host_iommu_detach_dev", iommu, domain, endpoint, pasid)[1])


# Mappings


@kernel_symbol("kvm_iommu_map_pages", runs_guest=True)
def kvm_iommu_map_pages(
    kernel: Kernel, domain: U32, iova: U64, paddr: U64, pgsize: U64, pgcount: U64, prot: S32, gfp: U32, total_at: Ptr
) -> int:
    """Map pages, with as many hypercalls as the driver's need for memory takes: 0, or -EINVAL where not all could be mapped.

    ``*total_at`` (a ``size_t``) counts the mapped bytes in any case.
    """
    total, size = kernel.memory.read_u64(total_at), pgsize * pgcount
    while True:
        arguments = (domain, iova, paddr, pgsize, pgcount, prot & 0xFFFF_FFFF)
        result = call_hyp(kernel, "host_iommu_map_pages", *arguments)
        mapped = result[1]
        if mapped % pgsize or mapped > pgsize * pgcount:
            warn(kernel, "arch/arm64/kvm/iommu.c kvm_iommu_map_pages")
        iova, paddr, total = iova + mapped, paddr + mapped, total + mapped
        pgcount -= mapped // pgsize
        kernel.memory.write_u64(total_at, total)
        if total >= size or top_up(kernel, result, gfp):
            return 0 if total >= size else -EINVAL


@kernel_symbol("kvm_iommu_unmap_pages", runs_guest=True)
def kvm_iommu_unmap_pages(kernel: Kernel, domain: U32, iova: U64, pgsize: U64, pgcount: U64) -> int:
    """Unmap pages; bytes unmapped."""
    total, size = 0, pgsize * pgcount & _U64
    while True:
        result = call_hyp(kernel, "host_iommu_unmap_pages", domain, iova, pgsize, pgcount)
        unmapped = result[1]
        if unmapped > size:
            raise misuse(
                kernel, f"kvm_iommu_unmap_pages: the hypervisor answers {unmapped:#x} (no driver, or it unmaps more)"
            )
        if pgsize and unmapped % pgsize:
            warn(kernel, "arch/arm64/kvm/iommu.c kvm_iommu_unmap_pages")
        total, iova = total + unmapped, iova + unmapped
        pgcount -= unmapped // pgsize if pgsize else 0
        if total >= size or (not unmapped and top_up(kernel, result, _GFP_KERNEL)):
            return total


@kernel_symbol("kvm_iommu_map_sg", runs_guest=True)
def kvm_iommu_map_sg(kernel: Kernel, domain: U32, entries: Ptr, iova: U64, count: U32, prot: U32, gfp: U32) -> int:
    """Map a list of ``struct kvm_iommu_sg`` that is shared with EL2; bytes mapped. The list is used up.

    Raises:
        ModuleError: nothing was mapped and EL2 asks for no memory: the kernel tries for ever.
    """
    total = 0
    while True:
        result = call_hyp(kernel, "host_iommu_map_sg", domain, iova, entries, count, prot)
        mapped = result[1]
        iova, total = iova + mapped, total + mapped
        entries, count = _skip(kernel, entries, count, mapped)
        refused = top_up(kernel, result, gfp)
        if not count:
            return total
        if refused and not mapped:
            raise misuse(kernel, f"kvm_iommu_map_sg: {count} entries are never mapped and the kernel tries for ever")


def _skip(kernel: Kernel, entry: int, count: int, mapped: int) -> tuple[int, int]:
    """Take ``mapped`` bytes off the front of a list: what is left of it."""
    memory = kernel.memory
    while mapped:
        pa, pgsize, pgcount = (memory.read_u64(entry + at) for at in (0, 8, 16))
        size = pgsize * (pgcount & 0xFFFF_FFFF)
        if mapped < size:
            memory.write_u64(entry, pa + mapped)
            memory.write_u32(entry + 16, (pgcount & 0xFFFF_FFFF) - mapped // pgsize)
            break
        mapped, entry, count = mapped - size, entry + _SG_SIZE, count - 1
    return entry, count


@kernel_symbol("kvm_iommu_iova_to_phys", runs_guest=True)
def kvm_iommu_iova_to_phys(kernel: Kernel, domain: U32, iova: U64) -> int:
    """PA behind an address of a domain; 0 where nothing is mapped."""
    return call_hyp(kernel, "host_iommu_iova_to_phys", domain, iova)[1]


def _each_page(kernel: Kernel, hypercall: str, entries: int, count: int) -> int:
    first = kernel.memory.linear_pa(entries) >> _PAGE_SHIFT
    for page in range(-(-count * _SG_SIZE // _PAGE_SIZE)):
        error = s32(call_hyp(kernel, hypercall, first + page)[1])
        if error:
            return error
    return 0


@kernel_symbol("kvm_iommu_share_hyp_sg", runs_guest=True)
def kvm_iommu_share_hyp_sg(kernel: Kernel, entries: Ptr, count: U32) -> int:
    """Share the pages of a list with EL2, for ``kvm_iommu_map_sg``; 0 or -errno."""
    return _each_page(kernel, "host_share_hyp", entries, count)


@kernel_symbol("kvm_iommu_unshare_hyp_sg", runs_guest=True)
def kvm_iommu_unshare_hyp_sg(kernel: Kernel, entries: Ptr, count: U32) -> int:
    """End ``kvm_iommu_share_hyp_sg``; 0 or -errno."""
    return _each_page(kernel, "host_unshare_hyp", entries, count)


# What the driver knows about devices


@kernel_symbol("kvm_iommu_device_num_ids", runs_guest=True)
def kvm_iommu_device_num_ids(kernel: Kernel, device: Ptr) -> int:
    """How many ids a device has at its IOMMUs, by the driver; 0 where it does not say."""
    function = driver_function(kernel, NUM_IDS)
    return kernel.call_s32(function, device) if function else 0


@kernel_symbol("kvm_iommu_device_id", runs_guest=True)
def kvm_iommu_device_id(kernel: Kernel, device: Ptr, index: U32, iommu: Ptr, stream: Ptr) -> int:
    """One of those ids: 0 and ``*iommu``, ``*stream``; -ENODEV where the driver does not say."""
    function = driver_function(kernel, DEVICE_ID)
    return kernel.call_s32(function, device, index, iommu, stream) if function else -ENODEV
