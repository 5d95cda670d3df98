"""Domains of the IOMMU core: what the host asks of its driver by hypercall (android15 and later).

A domain is a ``struct kvm_hyp_iommu_domain`` in a page of the IOMMU pool, found through a root table that the host gave. Source:
arch/arm64/kvm/hyp/nvhe/iommu/iommu.c.
"""

from __future__ import annotations

from errno import E2BIG, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from pkvm_emu.hyp.device_assignment import DeviceAssignment
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_rules import IDENTITY, MAX_DOMAINS
from pkvm_emu.machine.pagetable import PAGE_SIZE

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

_U64 = (1 << 64) - 1
#: READ, WRITE, CACHE, NOEXEC, MMIO, PRIV.
_PROT_MASK = 0x3F
#: struct kvm_hyp_iommu_domain: u32 refs, u32 domain_id.
_REFS, _ID = 0, 4
#: Scratch memory of the core: total_mapped, the gather, and the cache of unmapped addresses.
_MAPPED, _GATHER, _CACHE = 0, 64, PAGE_SIZE
_GATHER_BYTES, _GATHER_FREELIST = 64, 24
#: struct kvm_iommu_paddr_cache: a u16 count, 511 addresses, 511 sizes.
CACHE_MAX = 511
_CACHE_ADDRESSES, _CACHE_SIZES = 8, 8 + CACHE_MAX * 8
#: struct kvm_iommu_sg: phys, pgsize, u32 pgcount.
_SG_SIZE = 24


def flush_unmap_cache(hyp: Hypervisor, cache: int, origin: str) -> None:
    """Drop the DMA references of all addresses in a ``struct kvm_iommu_paddr_cache`` (hyp VA), the last first, and empty it."""
    what = "iommu_flush_unmap_cache"
    count = int.from_bytes(hyp.load(cache, 2, what), "little")
    for index in reversed(range(min(count, CACHE_MAX))):
        pa = hyp.load_u64(cache + _CACHE_ADDRESSES + 8 * index, what)
        hyp.ownership.unuse_dma(pa, hyp.load_u64(cache + _CACHE_SIZES + 8 * index, what), origin=origin)
    hyp.write(cache, bytes(2), what)


def init_gather(hyp: Hypervisor, gather: int, what: str) -> None:
    """Empty a ``struct iommu_iotlb_gather`` (hyp VA)."""
    hyp.write(gather, bytes(_GATHER_BYTES), what)
    hyp.write_u64(gather, _U64, what)
    for at in (_GATHER_FREELIST, _GATHER_FREELIST + 8):
        hyp.write_u64(gather + at, gather + _GATHER_FREELIST, what)


class IommuDomains:
    """The domains of one hypervisor. Everything is in guest memory; an object is made for a hypercall.

    Args:
        hyp: the hypervisor.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        self._hyp = hyp
        self._core = hyp.part(Iommu)
        self._rules = self._core.rules
        self._driver = self._core.driver
        self._assignment = DeviceAssignment(hyp)

    # Life of a domain

    def alloc(self, domain_id: int, kind: int) -> int:
        """Make a domain: 0, -EINVAL (not the host's to allocate, or in use), -ENOMEM, or what the driver's function returns."""
        guest = self._core.guest
        if guest is None and self._rules.host_domains <= domain_id < MAX_DOMAINS:
            return -EINVAL
        if domain_id >= MAX_DOMAINS:
            return -EINVAL if guest is None and self._rules.host_domains < MAX_DOMAINS else -ENOMEM
        domain = self._find(domain_id)
        if not domain:
            return -ENOMEM
        if self._refs(domain):
            return -EINVAL
        self._hyp.write(domain + _ID, domain_id.to_bytes(4, "little"))
        error = self._driver.call_int("alloc_domain", domain, kind)
        if not error:
            if guest is not None and self._rules.domain_vm is not None:
                self._hyp.write_u64(domain + self._rules.domain_vm, guest.vcpu_va)
            self._set_refs(domain, 1)
        return error

    def free(self, domain_id: int) -> int:
        """Free a domain: 0 or -EINVAL (no such domain).

        Raises:
            HypBug: it is not allocated, or still attached: a WARN at EL2.
        """
        if domain_id == IDENTITY and self._rules.identity_is_permanent:
            return -EINVAL
        domain = self._find(domain_id)
        if not domain:
            return -EINVAL
        references = self._refs(domain)
        if references != 1:
            why = f"has {references - 1} users" if references else "is not allocated"
            raise HypBug(f"the host frees IOMMU domain {domain_id}, which {why}: WARN in kvm_iommu_free_domain")
        self._set_refs(domain, 0)
        if self._vm_of(domain) != self._vm:
            # As in the original, which has dropped the last reference by then.
            return -EINVAL
        self._driver.call("free_domain", domain)
        self._hyp.write(domain, bytes(self._rules.domain_size))
        return 0

    def force_free(self, domain_id: int) -> None:
        """Free a domain of a guest that is torn down, attached or not."""
        domain = self._find(domain_id)
        if not domain:
            raise HypBug(f"IOMMU domain {domain_id} of a guest is gone: BUG in kvm_iommu_force_free_domain")
        self._set_refs(domain, 0)
        self._driver.call("free_domain", domain)
        self._hyp.write(domain, bytes(self._rules.domain_size))

    # Devices

    def attach(self, iommu_id: int, domain_id: int, endpoint: int, pasid: int, bits: int, flags: int) -> int:
        """Attach a device: 0, -ENODEV, -EINVAL (no such IOMMU or domain), or what the driver's ``attach_dev`` returns."""
        if self._rules.null_core_is_checked and not self._driver.has("attach_dev"):
            return -ENODEV
        iommu = self._driver.call("get_iommu_by_id", iommu_id)
        if not iommu:
            return -EINVAL
        error = self._assignment.get_context(iommu_id, endpoint, self._core.guest)
        if error:
            return error
        error = self._attach(iommu, iommu_id, domain_id, endpoint, pasid, bits, flags)
        self._assignment.put_context(iommu_id, endpoint)
        return error

    def _attach(
        self, iommu: int, iommu_id: int, domain_id: int, endpoint: int, pasid: int, bits: int, flags: int
    ) -> int:
        domain = self._find(domain_id)
        if not domain or self._get(domain, domain_id):
            return -EINVAL
        extra = (flags,) if self._rules.attach_has_flags else ()
        error = self._driver.call_int("attach_dev", iommu, domain, endpoint, pasid, bits, *extra)
        if error:
            self._put(domain)
        else:
            self._core.attached[iommu_id, endpoint, pasid] = domain_id
        return error

    def detach(self, iommu_id: int, domain_id: int, endpoint: int, pasid: int) -> int:
        """Detach a device: 0, -ENODEV, -EINVAL (nothing is attached), or what the driver's ``detach_dev`` returns."""
        if self._rules.null_core_is_checked and not self._driver.has("detach_dev"):
            return -ENODEV
        iommu = self._driver.call("get_iommu_by_id", iommu_id)
        if not iommu:
            return -EINVAL
        error = self._assignment.get_context(iommu_id, endpoint, self._core.guest)
        if error:
            return error
        error = self._detach(iommu, iommu_id, domain_id, endpoint, pasid)
        self._assignment.put_context(iommu_id, endpoint)
        return error

    def _detach(self, iommu: int, iommu_id: int, domain_id: int, endpoint: int, pasid: int) -> int:
        domain = self._find(domain_id)
        if not domain or self._refs(domain) <= 1:
            return -EINVAL
        error = self._driver.call_int("detach_dev", iommu, domain, endpoint, pasid)
        if not error:
            self._put(domain)
            self._core.attached.pop((iommu_id, endpoint, pasid), None)
        return error

    # Mappings

    def map_pages(self, domain_id: int, iova: int, pa: int, pgsize: int, pgcount: int, prot: int) -> tuple[int, int]:
        """Map pages: ``(errno, bytes mapped)``. Pages that a driver has no memory to map are not an error.

        Errors: -ENODEV (no driver), -EOPNOTSUPP (unknown protection), -E2BIG (overflow), -EINVAL (identity domain, alignment),
        -ENOENT (no domain), what ``use_dma`` or the driver's ``map_pages`` return.
        """
        size = pgsize * pgcount
        if not self._driver.has("map_pages"):
            return -ENODEV, 0
        if prot & ~_PROT_MASK:
            return -EOPNOTSUPP, 0
        if size > _U64 or iova + size > _U64 or pa + size > _U64:
            return -E2BIG, 0
        if self._rules.alignment_checked and (iova | pa) & pgsize - 1 & _U64:
            return -EINVAL, 0
        if domain_id == IDENTITY:
            return -EINVAL, 0
        domain = self._find(domain_id)
        if not domain or self._get(domain, domain_id):
            return -ENOENT, 0
        error, mapped = self._map(domain, iova, pa, pgsize, pgcount, prot)
        self._put(domain)
        return (0 if error == -ENOMEM else error), mapped

    def _map(self, domain: int, iova: int, pa: int, pgsize: int, pgcount: int, prot: int) -> tuple[int, int]:
        hyp, size = self._hyp, pgsize * pgcount
        by_guest = self._core.guest is not None
        error = hyp.ownership.use_dma(pa, size, origin="iommu_map_pages", by_guest=by_guest)
        if error:
            return error, 0
        total = self._core.scratch + _MAPPED
        hyp.write_u64(total, 0)
        error = self._driver.call_int("map_pages", domain, iova, pa, pgsize, pgcount, prot, total)
        mapped = hyp.load_u64(total, "total_mapped")
        if mapped < size:
            hyp.ownership.unuse_dma(pa + mapped, size - mapped, origin="iommu_map_pages", by_guest=by_guest)
        return error, mapped

    def unmap_pages(self, domain_id: int, iova: int, pgsize: int, pgcount: int) -> int:
        """Unmap pages; bytes unmapped. Nothing to unmap and wrong arguments are 0; no driver is 0 or (android16) -ENODEV."""
        size = pgsize * pgcount
        if not self._driver.has("unmap_pages"):
            return self._rules.unmap_without_driver
        if not size or size > _U64 or iova + size > _U64 or domain_id == IDENTITY:
            return 0
        if self._rules.alignment_checked and iova & pgsize - 1:
            return 0
        domain = self._find(domain_id)
        if not domain or self._get(domain, domain_id):
            return 0
        gather = self._core.scratch + _GATHER
        init_gather(self._hyp, gather, "iommu_unmap_pages")
        if self._rules.unmap_fills_cache:
            unmapped = self._unmap_in_parts(domain, iova, pgsize, pgcount, gather)
        else:
            unmapped = self._driver.call("unmap_pages", domain, iova, pgsize, pgcount, gather)
            self._core.sync_iotlb(domain, gather)
        self._put(domain)
        return unmapped

    def _unmap_in_parts(self, domain: int, iova: int, pgsize: int, pgcount: int, gather: int) -> int:
        cache, done = self._core.scratch + _CACHE, 0
        while done < pgsize * pgcount:
            count = min(pgcount - done // pgsize, CACHE_MAX)
            unmapped = self._driver.call("unmap_pages", domain, iova + done, pgsize, count, gather, cache)
            if not unmapped:
                break
            self._core.sync_iotlb(domain, gather)
            init_gather(self._hyp, gather, "iommu_unmap_pages")
            flush_unmap_cache(self._hyp, cache, "iommu_unmap_pages")
            done += unmapped
        return done

    def map_sg(self, domain_id: int, iova: int, entries: int, count: int, prot: int) -> int:
        """Map the entries of a list of ``struct kvm_iommu_sg`` (hyp VA, shared by the host); bytes mapped (android16)."""
        hyp = self._hyp
        if not self._driver.has("map_pages") or prot & ~_PROT_MASK:
            return 0
        domain = self._find(domain_id)
        if not domain or self._get(domain, domain_id):
            return 0
        end, total = entries + count * _SG_SIZE, 0
        if not hyp.ownership.pin_shared_mem(entries, end, origin="iommu_map_sg"):
            for entry in range(entries, end, _SG_SIZE):
                pa, pgsize, pages = (hyp.load_u64(entry + at, "struct kvm_iommu_sg") for at in (0, 8, 16))
                pages &= 0xFFFF_FFFF
                if pgsize * pages > _U64 or iova + pgsize * pages > _U64:
                    break
                _, mapped = self._map(domain, iova, pa, pgsize, pages, prot)
                total += mapped
                iova += mapped
                if mapped != pgsize * pages:
                    break
            hyp.ownership.unpin_shared_mem(entries, end, origin="iommu_map_sg")
        self._put(domain)
        return total

    def iova_to_phys(self, domain_id: int, iova: int) -> int:
        """PA behind an address of a domain; the address itself in the identity domain, 0 where nothing is there."""
        if not self._driver.has("iova_to_phys"):
            return self._rules.unmap_without_driver
        if domain_id == IDENTITY:
            return iova
        domain = self._find(domain_id)
        if not domain or self._get(domain, domain_id):
            return 0
        pa = self._driver.call("iova_to_phys", domain, iova)
        self._put(domain)
        return pa

    def sync_map(self, domain_id: int, iova: int, size: int) -> int:
        """Let the driver make new mappings visible: 0, -ENODEV, -EINVAL, or what it returns (android15, later releases)."""
        if not self._driver.has("iotlb_sync_map"):
            return -ENODEV
        if not size or iova + size > _U64 or domain_id == IDENTITY:
            return -EINVAL
        domain = self._find(domain_id)
        if not domain or self._get(domain, domain_id):
            return -EINVAL
        error = self._driver.call_int("iotlb_sync_map", domain, iova, size)
        self._put(domain)
        return error

    # The table

    def _find(self, domain_id: int) -> int:
        """Hyp VA of a domain, its page taken from the pool if need be; 0: no such id, or no page."""
        if domain_id >= MAX_DOMAINS:
            return 0
        index, place = divmod(domain_id, self._rules.domains_per_page)
        slot = self._core.domains_root + 8 * index
        page = self._hyp.load_u64(slot, "the root table of IOMMU domains")
        if not page:
            pa = self._core.donate(self._core.pool, 0, request=True)
            if not pa:
                return 0
            page = self._hyp.stage1.va_of(pa)
            self._hyp.write_u64(slot, page, "the root table of IOMMU domains")
        return page + place * self._rules.domain_size

    def _refs(self, domain: int) -> int:
        return int.from_bytes(self._hyp.load(domain + _REFS, 4, "kvm_hyp_iommu_domain.refs"), "little")

    def _set_refs(self, domain: int, count: int) -> None:
        self._hyp.write(domain + _REFS, count.to_bytes(4, "little"))

    def _vm_of(self, domain: int) -> int:
        """What names the guest that a domain belongs to; 0: the host."""
        at = self._rules.domain_vm
        return 0 if at is None else self._hyp.load_u64(domain + at, "kvm_hyp_iommu_domain.vm")

    @property
    def _vm(self) -> int:
        """The same for whoever the core works for."""
        return 0 if self._core.guest is None else self._core.guest.vcpu_va

    def _get(self, domain: int, domain_id: int) -> int:
        """Take a reference: 0, or -EPERM where the domain belongs to somebody else."""
        references = self._refs(domain)
        if not references:
            raise HypBug(f"the host uses IOMMU domain {domain_id}, which is not allocated: BUG in domain_get")
        if self._vm_of(domain) != self._vm:
            return -EPERM
        self._set_refs(domain, references + 1)
        return 0

    def _put(self, domain: int) -> None:
        references = self._refs(domain)
        if references <= 1:
            raise HypBug("the last reference of an IOMMU domain is dropped while it is used: BUG in domain_put")
        if self._vm_of(domain) != self._vm:
            raise HypBug("an IOMMU domain of somebody else loses a reference: WARN in domain_put")
        self._set_refs(domain, references - 1)
