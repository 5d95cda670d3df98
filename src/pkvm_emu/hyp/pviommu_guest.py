"""Hypercalls of protected guests about devices and their IOMMUs (android16).

``PVIOMMU_OP`` makes domains and maps the guest's memory in them, ``DEV_REQ_MMIO`` and ``DEV_REQ_DMA`` tell a guest which device
it has been given. A call that lacks memory leaves a request for the host and is made again when the VM runs next. Source:
arch/arm64/kvm/hyp/nvhe/{iommu/pviommu,device/device,mem_protect}.c.
"""

from __future__ import annotations

from errno import ENOENT, ENOMEM, EPERM
from typing import TYPE_CHECKING

from pkvm_emu.hyp import vm as ctx
from pkvm_emu.hyp.device_assignment import DeviceAssignment
from pkvm_emu.hyp.devices import Devices
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.heap import HypHeap
from pkvm_emu.hyp.host_requests import DEST_HYP_ALLOC, TYPE_MEM, HostRequest, MapRequest
from pkvm_emu.hyp.iommu import Iommu
from pkvm_emu.hyp.iommu_domains import IommuDomains
from pkvm_emu.hyp.iommu_rules import MAX_DOMAINS
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.hyp.ownership_guest import guest_state
from pkvm_emu.hyp.page_state import OWNED, RESTRICTED_PROT
from pkvm_emu.hyp.pviommu import PvIommus, Route
from pkvm_emu.machine.pagetable import LAST_LEVEL, LEVEL_SIZE, PAGE_SIZE

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.hyp.vm import Vm

DEV_REQ_DMA, PVIOMMU_OP, DEV_REQ_MMIO = 0xC600_003D, 0xC600_003E, 0xC600_003F
CALLS = frozenset((DEV_REQ_DMA, PVIOMMU_OP, DEV_REQ_MMIO))
#: The operations of ``PVIOMMU_OP``.
ATTACH_DEV, DETACH_DEV, ALLOC_DOMAIN, FREE_DOMAIN, MAP_PAGES, UNMAP_PAGES = range(6)
#: Any type of domain: guests do not know the IOMMU.
_ANY_TYPE = 1
#: struct pviommu_guest_domain: an id and a list head.
_GUEST_DOMAIN_SIZE = 24
_FIRST_GUEST_DOMAIN = MAX_DOMAINS >> 1
_PROT_MASK = 0x3F
_PAGE_MASK = PAGE_SIZE - 1
_SUCCESS, _NOT_SUPPORTED, _INVALID = 0, -1, -3


class GuestDevices:
    """Answers these calls of one guest. An object is made for a call.

    Args:
        hyp: the hypervisor.
        machine: the VM.
    """

    def __init__(self, hyp: Hypervisor, machine: Vm) -> None:
        self._hyp = hyp
        self._vm = machine
        self._core = hyp.part(Iommu)

    def call(self) -> bool:
        """Answer the call in the guest's registers; False: the host has to see to a request first."""
        function = self._vm[0] & 0xFFFF_FFFF
        with self._core.acting_for(self._vm):
            if function == DEV_REQ_MMIO:
                return self._request_mmio()
            if function == DEV_REQ_DMA:
                return self._request_dma()
            return self._pviommu()

    def _argument(self, number: int) -> int:
        return self._vm[8 * number]

    def _reserved(self, first: int) -> bool:
        """Whether an argument that must be zero is not: those from ``first`` to x6."""
        return any(self._argument(number) for number in range(first, 7))

    def _answer(self, status: int, *values: int) -> bool:
        for number, value in enumerate((status, *values, *(0,) * (3 - len(values)))):
            self._vm[8 * number] = value
        return True

    def _again(self) -> bool:
        """The guest makes the call again when it runs next."""
        self._vm[ctx.CTX_PC] -= 4
        return False

    def _status(self, error: int) -> bool:
        return self._answer(_INVALID if error else _SUCCESS)

    # IOMMUs

    def _pviommu(self) -> bool:
        cache = HostMemcache(self._hyp.machine.ram, self._vm.iommu_cache, self._vm.iommu_cached)
        if self._vm.iommu_pool is not None:
            self._vm.iommu_pool.refill(cache)
        self._vm.iommu_cache, self._vm.iommu_cached = cache.head, cache.count
        operations = {
            ATTACH_DEV: self._attach,
            DETACH_DEV: self._detach,
            ALLOC_DOMAIN: self._alloc,
            FREE_DOMAIN: self._free,
            MAP_PAGES: self._map,
            UNMAP_PAGES: self._unmap,
        }
        operation = operations.get(self._argument(1))
        return self._answer(_NOT_SUPPORTED) if operation is None else operation()

    def _route(self) -> Route | None:
        number, vsid = self._argument(2) & 0xFFFF_FFFF, self._argument(3) & 0xFFFF_FFFF
        return self._hyp.part(PvIommus).route(self._vm.handle, number, vsid)

    def _attach(self) -> bool:
        route = self._route()
        if route is None:
            return self._status(-ENOENT)
        pasid, domain, bits = (self._argument(number) & 0xFFFF_FFFF for number in (4, 5, 6))
        error = IommuDomains(self._hyp).attach(route.iommu, domain, route.sid, pasid, bits, 0)
        return self._again() if error == -ENOMEM else self._status(error)

    def _detach(self) -> bool:
        route = None if self._reserved(6) else self._route()
        if route is None:
            return self._status(-ENOENT)
        pasid, domain = self._argument(4) & 0xFFFF_FFFF, self._argument(5) & 0xFFFF_FFFF
        return self._status(IommuDomains(self._hyp).detach(route.iommu, domain, route.sid, pasid))

    def _take_lock(self) -> None:
        if self._hyp.part(PvIommus).lock_is_lost:
            raise HypBug(
                "a guest's PVIOMMU_OP released the lock of the guests' IOMMU domains without holding it: the hypervisor waits "
                "for it for ever"
            )

    def _alloc(self) -> bool:
        hyp, heap = self._hyp, self._hyp.part(HypHeap)
        record = heap.alloc(_GUEST_DOMAIN_SIZE)
        if not record:
            self._vm.requests.append(HostRequest(TYPE_MEM, DEST_HYP_ALLOC, heap.take_missing(), PAGE_SIZE))
            return self._again()
        if self._reserved(2):
            # The original goes to the end of the locked part before it has taken the lock.
            hyp.part(PvIommus).lock_is_lost = True
            heap.free(record)
            return self._answer(_INVALID)
        self._take_lock()
        # The original never marks an id as used, so it is always the first one; a second domain is refused because that one is.
        error = IommuDomains(hyp).alloc(_FIRST_GUEST_DOMAIN, _ANY_TYPE)
        if error:
            heap.free(record)
            return self._again() if error == -ENOMEM else self._answer(_INVALID)
        self._vm.iommu_domains.append((_FIRST_GUEST_DOMAIN, record))
        return self._answer(_SUCCESS, _FIRST_GUEST_DOMAIN)

    def _free(self) -> bool:
        if self._reserved(3):
            return self._answer(_INVALID)
        self._take_lock()
        domain = self._argument(2) & 0xFFFF_FFFF
        error = IommuDomains(self._hyp).free(domain)
        known = next((one for one in self._vm.iommu_domains if one[0] == domain), None)
        if not error and known is not None:
            self._vm.iommu_domains.remove(known)
            self._hyp.part(HypHeap).free(known[1])
        return self._status(error)

    def _map(self) -> bool:
        domain, iova, ipa, size, prot = (self._argument(number) for number in range(2, 7))
        if (iova | ipa | size) & _PAGE_MASK:
            return self._answer(_INVALID)
        done, status = 0, _SUCCESS
        while size:
            error, pa, granule = self._page(ipa, size)
            if error == -ENOENT:
                return self._partly(done)
            if error:
                status = _INVALID
                break
            if self._hyp.ownership.use_dma(pa, granule, origin=self._origin, by_guest=True):
                raise HypBug(f"{self._origin} maps {pa:#x}, which devices cannot use: WARN in __pkvm_use_dma_locked")
            pages = min(size, granule) // PAGE_SIZE
            arguments = (domain & 0xFFFF_FFFF, iova, pa, PAGE_SIZE, pages, prot & _PROT_MASK)
            _, mapped = IommuDomains(self._hyp).map_pages(*arguments)
            self._hyp.ownership.unuse_dma(pa, granule, origin=self._origin, by_guest=True)
            if not mapped:
                if self._vm.requests:
                    return self._partly(done)
                status = _INVALID
                break
            ipa, iova, done, size = ipa + mapped, iova + mapped, done + mapped, size - mapped
        return self._answer(status, done)

    def _partly(self, done: int) -> bool:
        """The guest is told how much was done, and makes another call for the rest."""
        self._answer(_SUCCESS, done)
        return False

    def _unmap(self) -> bool:
        domain, iova, size = (self._argument(number) for number in range(2, 5))
        if (iova | size) & _PAGE_MASK or self._reserved(5):
            return self._answer(_INVALID)
        done = IommuDomains(self._hyp).unmap_pages(domain & 0xFFFF_FFFF, iova, PAGE_SIZE, size // PAGE_SIZE)
        if done < size and self._vm.requests:
            return self._partly(done)
        return self._answer(_SUCCESS if done >= size else _INVALID, done)

    # The guest's memory

    @property
    def _origin(self) -> str:
        return f"guest {self._vm.handle:#x}"

    def _page(self, ipa: int, size: int) -> tuple[int, int, int]:
        """``pkvm_get_guest_pa_request``: ``(errno, PA, bytes of the entry)``; -ENOENT leaves a request to map it."""
        reader = self._vm.reader
        if ipa >> reader.va_bits:
            raise HypBug(f"{self._origin} names IPA {ipa:#x}, beyond its addresses: WARN in pkvm_get_guest_pa_request")
        leaf = reader.walk(ipa)
        if not leaf.valid:
            self._vm.requests.append(MapRequest(ipa, size))
            return -ENOENT, 0, 0
        if guest_state(leaf.descriptor) & ~RESTRICTED_PROT != OWNED:
            return -EPERM, 0, 0
        return 0, leaf.pa & ~_PAGE_MASK, LEVEL_SIZE[leaf.level]

    # Devices

    def _request_mmio(self) -> bool:
        ipa = self._argument(1)
        if self._reserved(2) or ipa & _PAGE_MASK:
            return self._answer(_INVALID)
        error, token, granule = self._page(ipa, PAGE_SIZE)
        if error == -ENOENT:
            return self._again()
        if error:
            return self._answer(_INVALID)
        if granule != LEVEL_SIZE[LAST_LEVEL]:
            raise HypBug(
                f"{self._origin} asks for the device at {ipa:#x}, which is no page: WARN in pkvm_device_request_mmio"
            )
        devices = self._hyp.part(Devices)
        for number, owner in devices.owners.items():
            ranges = devices.resources[number] if owner == self._vm.handle else ()
            if any(base <= token and token + PAGE_SIZE <= base + size for base, size in ranges):
                return self._answer(_SUCCESS, token)
        return self._answer(_INVALID)

    def _request_dma(self) -> bool:
        number, vsid = self._argument(1) & 0xFFFF_FFFF, self._argument(2) & 0xFFFF_FFFF
        route = None if self._reserved(3) else self._hyp.part(PvIommus).route(self._vm.handle, number, vsid)
        if route is None:
            return self._answer(_INVALID)
        error, token = self._core.token(route.iommu)
        device = None if error else self._hyp.part(Devices).find_by_iommu(route.iommu, route.sid)
        if device is None or DeviceAssignment(self._hyp).take(self._vm, device, -EPERM):
            return self._answer(_INVALID)
        return self._answer(_SUCCESS, token, route.sid)


def teardown(hyp: Hypervisor, machine: Vm) -> None:
    """``pkvm_pviommu_teardown``: free a dying guest's domains, and give the pages of its pool back to the host."""
    if machine.iommu_domains:
        if hyp.part(PvIommus).lock_is_lost:
            raise HypBug(
                "the lock of the guests' IOMMU domains was released without being held: the teardown waits for ever"
            )
        with hyp.part(Iommu).acting_for(machine):
            for domain, record in list(machine.iommu_domains):
                IommuDomains(hyp).force_free(domain)
                hyp.part(HypHeap).free(record)
        machine.iommu_domains.clear()
    hyp.part(PvIommus).release(machine.handle)
    pool = machine.iommu_pool
    if pool is not None:
        pool.reclaim(HostMemcache(hyp.machine.ram), pool.free_pages)
