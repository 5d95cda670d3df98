"""The IOMMU core, as far as the module ops and the initialisation of a driver reach.

A driver is a module. It gets pages from two pools that the host fills, and once it asked for a snapshot of the host's stage-2 it is
told of every change of it. Source: arch/arm64/kvm/hyp/nvhe/iommu/iommu.c.
"""

from __future__ import annotations

from errno import E2BIG, EINVAL, ENODEV, ENOENT
from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.external_pool import ExternalPool
from pkvm_emu.hyp.iommu_driver import MANDATORY, IommuDriver
from pkvm_emu.hyp.memcache import HostMemcache
from pkvm_emu.hyp.pgtable import HOST_MEM_PROT, HOST_MMIO_PROT, visit_leaves
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import DESC_VALID, LEVEL_SIZE, PAGE_SHIFT
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

IOMMU_READ, IOMMU_WRITE, IOMMU_MMIO = 1, 2, 16
_HOST_POOL_ORDER, _ATOMIC_POOL_ORDER = 6, 10
#: The root table of domains: 643 pointers to pages of 102 domains of 40 bytes.
DOMAINS_ROOT_PAGES = 2
MAX_POWER_DOMAINS = 32


@hyp_part
class Iommu(State):
    """The IOMMU core of one hypervisor.

    Attributes:
        ops: hyp VA of the driver's ``struct kvm_iommu_ops``; 0 before one is initialised.
        domains_root: hyp VA of the root table of domains, which the host sets before.
        power_domains: hyp VA of the ``struct kvm_hyp_iommu`` by device id of its HVC power domain.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.iommu")
        self._hyp = hyp
        self.ops = 0
        self.domains_root = 0
        self.power_domains: StateDict[int, int] = StateDict(hyp.machine.journal)
        self._host_pool = ExternalPool(hyp, "IOMMU", _HOST_POOL_ORDER)
        self._atomic_pool = ExternalPool(hyp, "atomic IOMMU", _ATOMIC_POOL_ORDER)
        hyp.host.add_iommu_hooks(self._idmap, self._idmap_complete)

    @property
    def pool(self) -> ExternalPool:
        """Pages for the host's domains."""
        return self._host_pool

    @property
    def atomic_pool(self) -> ExternalPool:
        """Pages for the identity map, taken where no request can be made."""
        return self._atomic_pool

    @property
    def driver(self) -> IommuDriver:
        """The driver."""
        return IommuDriver(self._hyp, self.ops)

    def init(self, ops: int, cache: HostMemcache, argument: int) -> int:
        """Initialise the driver at ``ops``: 0, -ENODEV without the mandatory functions, or what its ``init`` returns."""
        hyp, driver = self._hyp, IommuDriver(self._hyp, ops)
        if not ops or not all(driver.function(name) for name in MANDATORY):
            return -ENODEV
        self._host_pool.ready = True
        root = hyp.stage1.pa_of(self.domains_root) >> PAGE_SHIFT
        error = hyp.ownership.host_donate_hyp(root, DOMAINS_ROOT_PAGES, origin="iommu_init")
        if error:
            return error
        self.ops = ops
        if cache.head:
            self._atomic_pool.ready = True
            error = self._atomic_pool.refill(cache)
            if error:
                return error
        result = driver.call("init", argument) & 0xFFFF_FFFF
        result -= (result >> 31) << 32
        if result:
            hyp.ownership.hyp_donate_host(root, DOMAINS_ROOT_PAGES, origin="iommu_init failed")
        return result

    def snapshot(self, domain: int) -> int:
        """Tell the driver every range that the host can reach; from now on it is told of changes."""
        hyp, driver = self._hyp, self.driver
        table = hyp.host.table
        for address, level, descriptor, _ in list(visit_leaves(table, 0, 1 << table.va_bits)):
            if descriptor and not descriptor & DESC_VALID:
                continue
            prot = IOMMU_READ | IOMMU_WRITE | (0 if hyp.ownership.memory.is_memory(address) else IOMMU_MMIO)
            driver.call("host_stage2_idmap", domain, address, address + LEVEL_SIZE[level], prot)
        hyp.tells_modules = True
        return 0

    def sync_iotlb(self, domain: int, gather: int) -> None:
        """Let the driver flush what ``gather`` collected."""
        driver = self.driver
        if driver.function("iotlb_sync"):
            driver.call("iotlb_sync", domain, gather)

    def init_power_domain(self, iommu: int, kind: int, device_id: int) -> int:
        """Register an HVC power domain: 0 or -E2BIG; other kinds than none and HVC are the caller's."""
        if device_id >= MAX_POWER_DOMAINS:
            return -E2BIG
        self.power_domains[device_id] = iommu
        return 0

    def power(self, device_id: int, on: bool) -> tuple[int, int]:
        """The IOMMU of a power domain and 0; 0 and -E2BIG or -ENOENT where there is none."""
        if device_id >= MAX_POWER_DOMAINS:
            return 0, -E2BIG
        iommu = self.power_domains.get(device_id)
        return (iommu, 0) if iommu else (0, -ENOENT)

    def refill(self, cache: HostMemcache) -> int:
        """Pages for the pool; -EINVAL without a driver."""
        return self._host_pool.refill(cache) if self.ops else -EINVAL

    # Changes of the host's stage-2

    def _idmap(self, start: int, end: int, prot: int) -> None:
        if not self._hyp.tells_modules:
            return
        known = {HOST_MEM_PROT: IOMMU_READ | IOMMU_WRITE, HOST_MMIO_PROT: IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO, 0: 0}
        if prot not in known:
            raise HypBug(f"the IOMMU core cannot tell its driver about protection {prot:#x} of {start:#x}")
        self.driver.call("host_stage2_idmap", self._identity_domain(), start, end, known[prot])

    def _idmap_complete(self, mapped: bool) -> None:
        if self._hyp.tells_modules and self.driver.function("host_stage2_idmap_complete"):
            self.driver.call("host_stage2_idmap_complete", int(mapped))

    def _identity_domain(self) -> int:
        """Hyp VA of domain 0; 0 while the host has not allocated it."""
        return self._hyp.load_u64(self.domains_root, "the IOMMU core looks domain 0 up")
