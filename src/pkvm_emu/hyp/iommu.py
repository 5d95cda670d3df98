"""The IOMMU core of android15 and android16: its driver, its pools, its power domains, and the identity map.

A driver is a module. It gets pages from two pools that the host fills, and once it asked for a snapshot of the host's stage-2 it is
told of every change of it. Domains are in :mod:`pkvm_emu.hyp.iommu_domains`, what differs between the generations in
:mod:`pkvm_emu.hyp.iommu_rules`. Source: arch/arm64/kvm/hyp/nvhe/{iommu/iommu,power/hvc}.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import E2BIG, EBUSY, EINVAL, ENODEV, ENOENT
from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.external_pool import ExternalPool
from pkvm_emu.hyp.host_requests import DEST_HYP_IOMMU, TYPE_MEM, HostRequest, HostRequests
from pkvm_emu.hyp.iommu_aborts import IommuAborts
from pkvm_emu.hyp.iommu_blocks import BlockPools
from pkvm_emu.hyp.iommu_driver import IommuDriver
from pkvm_emu.hyp.iommu_rules import DOMAINS_ROOT_OFFSET, RULES, IommuRules
from pkvm_emu.hyp.memcache import HostMemcache, admit
from pkvm_emu.hyp.pgtable import HOST_MEM_PROT, HOST_MMIO_PROT, visit_leaves
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import DESC_VALID, LEVEL_SIZE, PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor
    from pkvm_emu.hyp.vm import Vm

IOMMU_READ, IOMMU_WRITE, IOMMU_MMIO = 1, 2, 16
_HOST_POOL_ORDER, _ATOMIC_POOL_ORDER = 6, 10
MAX_POWER_DOMAINS = 32
_SCRATCH_ORDER = 2
_LOCK_HALF = 0xFFFF


@hyp_part
class Iommu(State):
    """The IOMMU core of one hypervisor.

    Attributes:
        ops: hyp VA of the driver's ``struct kvm_iommu_ops``; 0 before one is initialised.
        domains_root: hyp VA of the root table of domains; EL2 takes it from the host's variable when the driver is initialised.
        power_domains: hyp VA of the ``struct kvm_hyp_iommu`` by device id of its HVC power domain.
        attached: the domain by ``(IOMMU, endpoint, PASID)``, as attached by hypercalls; only reports look at it.
        follows: the driver is told of changes of the host's stage-2.
        scratch: hyp VA of EL2 memory for what the core keeps on its stack or per CPU; 0 before a driver is initialised.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.iommu")
        self._hyp = hyp
        self.ops = 0
        self.domains_root = 0
        self.follows = False
        self.scratch = 0
        self.power_domains: StateDict[int, int] = StateDict(hyp.machine.journal)
        self.attached: StateDict[tuple[int, int, int], int] = StateDict(hyp.machine.journal)
        self._guest: Vm | None = None
        self._host_pool = ExternalPool(hyp, "IOMMU", _HOST_POOL_ORDER)
        self._atomic_pool = ExternalPool(hyp, "atomic IOMMU", _ATOMIC_POOL_ORDER)
        self._blocks = BlockPools(hyp)
        self._aborts = IommuAborts(hyp, self._wants_abort, self._handle_abort)
        hyp.host.add_iommu_hooks(self._idmap, self._idmap_complete)

    @property
    def rules(self) -> IommuRules:
        """What is particular to the generation (android15 and later)."""
        return RULES[self._hyp.generation.layout]

    @property
    def guest(self) -> Vm | None:
        """The guest for which the core works now: it made the call, or it is being torn down; None: the host."""
        return self._guest

    @contextmanager
    def acting_for(self, guest: Vm) -> Iterator[None]:
        """What the core does in this block it does for a guest: other pages, and only that guest's domains."""
        self._guest = guest
        try:
            yield
        finally:
            self._guest = None

    @property
    def pool(self) -> ExternalPool:
        """Pages for the domains of whoever the core works for."""
        pool = None if self._guest is None else self._guest.iommu_pool
        return pool or self._host_pool

    @property
    def host_pool(self) -> ExternalPool:
        """Pages for the host's domains."""
        return self._host_pool

    @property
    def blocks(self) -> BlockPools:
        """Pools in the host's ``pkvm,cma`` region (android15)."""
        return self._blocks

    def pool_of(self, pa: int) -> ExternalPool | BlockPools:
        """Where a page of :meth:`donate` goes back to."""
        return self._blocks if self.rules.has_block_pools and self._blocks.in_region(pa) else self.pool

    @property
    def atomic_pool(self) -> ExternalPool:
        """Pages for the identity map, taken where no request can be made."""
        return self._atomic_pool

    @property
    def driver(self) -> IommuDriver:
        """The driver."""
        return IommuDriver(self._hyp, self.ops)

    # The driver

    def init(self, ops: int, cache: HostMemcache, argument: int) -> int:
        """Initialise the driver at ``ops``: 0, -ENODEV without the mandatory functions, or what its ``init`` returns.

        Raises:
            HypBug: android15: a mandatory function is missing, which is a WARN at EL2.
        """
        hyp, driver, rules = self._hyp, IommuDriver(self._hyp, ops), self.rules
        missing = [name for name in rules.mandatory if not driver.has(name)]
        if missing and rules.missing_is_fatal:
            raise HypBug(f"the IOMMU driver at {ops:#x} has no {', '.join(missing)}: WARN in kvm_iommu_init")
        if missing:
            return -ENODEV
        stored = hyp.machine.ram.read_u64(hyp._image_pa + DOMAINS_ROOT_OFFSET)
        self.domains_root = stored or self.domains_root
        root = hyp.stage1.pa_of(self.domains_root) >> PAGE_SHIFT
        error = hyp.ownership.host_donate_hyp(root, rules.root_pages, origin="iommu_init")
        if error:
            return error
        self._host_pool.ready = True
        self.ops = ops
        self.scratch = self.scratch or hyp.stage1.va_of(hyp._own_pages(_SCRATCH_ORDER))
        self._aborts.attach()
        if cache.head:
            self._atomic_pool.ready = True
            error = self._atomic_pool.refill(cache)
            if error:
                return error
        if rules.init_optional and not driver.has("init"):
            return 0
        result = driver.call_int("init", argument)
        if result and rules.failed_init_returns_root:
            hyp.ownership.hyp_donate_host(root, rules.root_pages, origin="iommu_init failed")
        return result

    def sync_iotlb(self, domain: int, gather: int) -> None:
        """Let the driver flush what ``gather`` collected."""
        driver = self.driver
        if driver.function("iotlb_sync"):
            driver.call("iotlb_sync", domain, gather)

    def _wants_abort(self, _address: int) -> bool:
        return self.driver.has("dabt_handler")

    def _handle_abort(self, registers: int, esr: int, address: int) -> bool:
        return bool(self.driver.call("dabt_handler", registers, esr, address) & 1)

    # Pages

    def donate(self, pool: ExternalPool, order: int, request: bool) -> int:
        """PA of a block of a pool; 0 without one, and a request for the host is left if ``request``."""
        pa = self._blocks.alloc(order) if self.rules.has_block_pools and pool is self._host_pool else None
        pa = pool.alloc(order) if pa is None else pa
        if pa is None and request:
            wanted = HostRequest(TYPE_MEM, DEST_HYP_IOMMU, 1, PAGE_SIZE << order)
            if self._guest is not None:
                self._guest.requests.append(wanted)
            else:
                self._hyp.part(HostRequests).leave(self._hyp.cpu.index, wanted)
        return pa or 0

    def refill(self, cache: HostMemcache) -> int:
        """Pages for the pools: 0, -EINVAL (no driver, a page that cannot be taken), -EBUSY (all block pools are in use)."""
        if not self.ops:
            return -EINVAL
        if not self.rules.has_block_pools:
            return self._host_pool.refill(cache)
        while cache.count:
            order = cache.order
            if cache.first & (PAGE_SIZE << order) - 1:
                return -EINVAL
            pa = admit(self._hyp, cache, order)
            if pa is None:
                return -EINVAL
            if not self._blocks.is_block(pa, order):
                self._host_pool.add(pa, order)
            elif not self._blocks.add(pa):
                cache.push(pa, order)
                if self._hyp.ownership.hyp_donate_host(pa >> PAGE_SHIFT, 1 << order, origin="IOMMU block pool"):
                    raise HypBug(f"the IOMMU core cannot give {pa:#x} back: WARN in __repudiate_host_page")
                return -EBUSY
        return 0

    @property
    def reclaimable(self) -> int:
        """Pages that could go back to the host."""
        return self._host_pool.free_pages + self._blocks.free_pages if self.ops else 0

    def reclaim(self, cache: HostMemcache, target: int) -> None:
        """Give ``target`` pages back, as far as there are."""
        before = cache.count
        self._host_pool.reclaim(cache, target)
        self._blocks.reclaim(cache, target - (cache.count - before))

    # Power domains

    def init_power_domain(self, iommu: int, kind: int, device_id: int) -> int:
        """Register an HVC power domain: 0 or -E2BIG; other kinds than none and HVC are the caller's."""
        if device_id >= MAX_POWER_DOMAINS:
            return -E2BIG
        self.power_domains[device_id] = iommu
        return 0

    def power(self, device_id: int, on: bool) -> int:
        """Power the IOMMU of a domain: 0, -E2BIG or -ENOENT where there is none.

        Its driver's ``resume`` or ``suspend`` runs with the IOMMU's lock held; its result only decides about the flag.
        """
        if device_id >= MAX_POWER_DOMAINS:
            return -E2BIG
        iommu = self.power_domains.get(device_id)
        if not iommu:
            return -ENOENT
        self.switch_power(iommu, on)
        return 0

    def switch_power(self, iommu: int, on: bool) -> None:
        """Let the driver ``resume`` or ``suspend`` an IOMMU (hyp VA of its ``struct kvm_hyp_iommu``), and note it there."""
        hyp, rules, driver = self._hyp, self.rules, self.driver
        flag = iommu + rules.power_is_off
        self._lock(iommu + rules.lock)
        before = hyp.load(flag, 1, "kvm_hyp_iommu.power_is_off")
        state = b"\0" if on else b"\1"
        if rules.power_flag_follows_failure or not on:
            hyp.write(flag, state)
        name = "resume" if on else "suspend"
        result = driver.call_int(name, iommu) if driver.function(name) else 0
        if not result:
            hyp.write(flag, state)
        elif rules.power_flag_follows_failure:
            hyp.write(flag, before)
        self._unlock(iommu + rules.lock)

    def _lock(self, lock: int) -> None:
        # A ticket lock: u16 owner, u16 next.
        word = int.from_bytes(self._hyp.load(lock, 4, "kvm_hyp_iommu.lock"), "little")
        if word & _LOCK_HALF != word >> 16:
            raise HypBug(f"the lock of the IOMMU at {lock:#x} is held already: the hypervisor waits for ever")
        self._hyp.write(lock + 2, ((word >> 16) + 1 & _LOCK_HALF).to_bytes(2, "little"))

    def _unlock(self, lock: int) -> None:
        owner = int.from_bytes(self._hyp.load(lock, 2, "kvm_hyp_iommu.lock"), "little")
        self._hyp.write(lock, (owner + 1 & _LOCK_HALF).to_bytes(2, "little"))

    # Devices of guests

    def block_dma(self, iommu_id: int, endpoint: int, host_to_guest: bool) -> int:
        """Cut a device off before it changes hands: 0, -ENODEV (the driver cannot), -ENOENT, or what ``dev_block_dma`` returns."""
        driver = self.driver
        if not driver.has("dev_block_dma"):
            return -ENODEV
        iommu = driver.call("get_iommu_by_id", iommu_id)
        return driver.call_int("dev_block_dma", iommu, endpoint, int(host_to_guest)) if iommu else -ENOENT

    def token(self, iommu_id: int) -> tuple[int, int]:
        """What a guest's firmware calls an IOMMU: ``(errno, token)``; -ENODEV where the driver cannot say."""
        driver = self.driver
        if not driver.has("get_iommu_token_by_id"):
            return -ENODEV, 0
        self._hyp.write_u64(self.scratch, 0, "the token of an IOMMU")
        error = driver.call_int("get_iommu_token_by_id", iommu_id, self.scratch)
        return error, self._hyp.load_u64(self.scratch, "the token of an IOMMU")

    # The identity map

    def snapshot(self, domain: int) -> int:
        """Tell the driver every range that the host can reach; from now on it is told of changes."""
        hyp, driver = self._hyp, self.driver
        table = hyp.host.table
        for address, level, descriptor, _ in list(visit_leaves(table, 0, 1 << table.va_bits)):
            if descriptor and not descriptor & DESC_VALID:
                continue
            prot = IOMMU_READ | IOMMU_WRITE | (0 if hyp.ownership.memory.is_memory(address) else IOMMU_MMIO)
            driver.call("host_stage2_idmap", domain, address, address + LEVEL_SIZE[level], prot)
        self.follows = True
        hyp.tells_modules = True
        return 0

    def _idmap(self, start: int, end: int, prot: int) -> None:
        if not self.follows:
            return
        known = {HOST_MEM_PROT: IOMMU_READ | IOMMU_WRITE, HOST_MMIO_PROT: IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO, 0: 0}
        if prot not in known:
            raise HypBug(f"the IOMMU core cannot tell its driver about protection {prot:#x} of {start:#x}")
        self.driver.call("host_stage2_idmap", self._identity_domain(), start, end, known[prot])

    def _idmap_complete(self, mapped: bool) -> None:
        if self.follows and self.driver.function("host_stage2_idmap_complete"):
            self.driver.call("host_stage2_idmap_complete", int(mapped))

    def _identity_domain(self) -> int:
        """Hyp VA of domain 0; 0 while the host has not allocated it."""
        return self._hyp.load_u64(self.domains_root, "the IOMMU core looks domain 0 up")
