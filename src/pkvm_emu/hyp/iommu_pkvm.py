"""The IOMMU core of android14: drivers that follow the host's stage-2, and the devices registered with them.

A driver of a module gives its ``struct pkvm_iommu_driver``. Devices are registered one by one; each takes a piece of a page that
the host gives. Every change of the host's stage-2 goes to all drivers (``host_stage2_idmap_prepare``), then to each powered
device (``_apply``), then again to each (``_complete``). Source: arch/arm64/kvm/hyp/nvhe/iommu.c of android14-5.15 and -6.1.
"""

from __future__ import annotations

from errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOMEM, EPERM
from typing import TYPE_CHECKING

from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.iommu_aborts import IommuAborts
from pkvm_emu.hyp.iommu_pkvm_structs import INITIALISING, NOT_READY, READY, PkvmIommu, PkvmIommuDriver
from pkvm_emu.hyp.ops.memory import map_private
from pkvm_emu.hyp.pgtable import PAGE_HYP_DEVICE, visit_leaves
from pkvm_emu.hyp.registry import hyp_part
from pkvm_emu.machine.pagetable import DESC_VALID, LEVEL_SIZE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from pkvm_emu.machine.state import State, StateList

if TYPE_CHECKING:
    from pkvm_emu.hyp.hypervisor import Hypervisor

SUSPEND, RESUME = 0, 1


@hyp_part
class PkvmIommus(State):
    """Drivers and devices of one hypervisor.

    Attributes:
        finalised: nothing can be registered any more.
        no_dma_isolation: the host reported an error when it finalised: protected VMs would not be safe from devices.
        drivers, devices: hyp VAs of the structures, in the order of their registration.
    """

    def __init__(self, hyp: Hypervisor) -> None:
        super().__init__(hyp.machine.journal, "hyp.pkvm_iommu")
        self._hyp = hyp
        self.finalised = False
        self.no_dma_isolation = False
        self.drivers: StateList[int] = StateList(hyp.machine.journal)
        self.devices: StateList[int] = StateList(hyp.machine.journal)
        self.lock_is_lost = False
        self.pool = 0
        self.remaining = 0
        self.lists = 0
        self._aborts = IommuAborts(hyp, self._wants_abort, self._handle_abort)
        if "iommu_driver_init" in hyp.generation.hypercalls:
            hyp.host.add_iommu_hooks(self._idmap, lambda mapped: None)

    # Registration

    def init_driver(self, driver_va: int, data: int, size: int) -> int:
        """Register the driver at ``driver_va`` and call its ``init(data, size)``; both are hyp VAs, ``data`` is shared by the host.

        Errors: -EPERM (finalised), -EINVAL (NULL, or no ops), -EEXIST (registered before; the hypervisor forgets to release
        its lock then), -EBUSY, what pinning ``data`` or ``init`` return.
        """
        self._take_lock()
        if self.finalised:
            return -EPERM
        if not driver_va or driver_va in self.drivers:
            self.lock_is_lost = True
            return -EEXIST if driver_va else -EINVAL
        driver = PkvmIommuDriver(self._hyp, driver_va)
        driver.link(self._list_head(0))
        self.drivers.append(driver_va)
        if not driver.ops:
            return -EINVAL
        if driver.state != NOT_READY:
            return -EBUSY
        driver.set_state(INITIALISING)
        error = self._call_init(driver, data, size)
        if not error:
            self._snapshot(driver)
            self._aborts.attach()
            self._hyp.tells_modules = True
        driver.set_state(NOT_READY if error else READY)
        return error

    def _call_init(self, driver: PkvmIommuDriver, data: int, size: int) -> int:
        if not driver.has("init"):
            return 0
        ownership = self._hyp.ownership
        error = ownership.pin_shared_mem(data, data + size, origin="iommu_driver_init")
        if not error:
            error = driver.call("init", data, size)
            ownership.unpin_shared_mem(data, data + size, origin="iommu_driver_init")
        return error

    def register(
        self, device_id: int, driver_va: int, pa: int, size: int, parent_id: int, flags: int, memory: int
    ) -> int:
        """Register a device whose registers are at ``pa``: EL2 maps them, the host cannot touch them any more.

        ``memory`` is the hyp VA of a page that the host gives for this and further devices; 0: use what is left of the last one.

        Errors: -EPERM (finalised), -ENOENT (no ready driver), -EINVAL (alignment, RAM, parent), -ENOMEM (a page is needed),
        -EBUSY (registered before, or overlap), what donations or the driver's ``validate`` and ``validate_child`` return.
        """
        self._take_lock()
        if self.finalised:
            return -EPERM
        if driver_va not in self.drivers:
            return -ENOENT
        driver = PkvmIommuDriver(self._hyp, driver_va)
        if driver.state != READY:
            return -ENOENT
        if (pa | size | memory) & PAGE_MASK or not self._is_mmio(pa, size):
            return -EINVAL
        if memory:
            pfn = self._hyp.stage1.pa_of(memory) >> PAGE_SHIFT
            error = self._hyp.ownership.host_donate_hyp(pfn, 1, origin="iommu_register")
            if error:
                return error
            self.pool, self.remaining = memory, PAGE_SIZE
        need = driver.device_size
        if need > self.remaining:
            return -ENOMEM
        device = PkvmIommu.make(self._hyp, self.pool, device_id, driver.ops, pa, size, flags)
        self.pool, self.remaining = self.pool + need, self.remaining - need
        parent = self._find(parent_id) if parent_id else None
        error = self._admit(device, driver, parent, wants_parent=bool(parent_id))
        if error:
            self.pool, self.remaining = self.pool - need, self.remaining + need
            return error
        device.link(self._list_head(1), parent)
        self.devices.append(device.address)
        return 0

    def _admit(self, device: PkvmIommu, driver: PkvmIommuDriver, parent: PkvmIommu | None, wants_parent: bool) -> int:
        for other in self._all():
            if device.id == other.id or (device.pa < other.end and other.pa < device.end):
                return -EBUSY
        if wants_parent:
            if parent is None:
                return -EINVAL
            device.set_parent(parent)
            error = parent.driver.call("validate_child", parent.address, device.address)
            if error:
                return error
        error = driver.call("validate", device.address)
        if error:
            return error
        # Donated, so that no block that the host's stage-2 is filled with covers them again.
        pages = device.size >> PAGE_SHIFT
        error = self._hyp.ownership.host_donate_hyp(device.pa >> PAGE_SHIFT, pages, True, origin="iommu_register")
        if error:
            return error
        error, va = map_private(self._hyp, device.pa, device.size, PAGE_HYP_DEVICE)
        if not error:
            device.set_va(va)
        return error

    def finalise(self, error: int) -> int:
        """Close the registration: 0, or -EPERM the second time. ``error`` is what the host's driver reports of itself."""
        self._take_lock()
        if self.finalised:
            return -EPERM
        self.finalised = True
        self.no_dma_isolation = bool(error)
        return 0

    # Power

    def pm_notify(self, device_id: int, event: int) -> int:
        """Suspend (0) or resume (1) a device: 0, -ENODEV, -EINVAL, or what the driver returns (the device stays as it was then)."""
        device = self._find(device_id)
        if device is None:
            return -ENODEV
        if event not in (SUSPEND, RESUME):
            return -EINVAL
        error = device.driver.call("resume" if event == RESUME else "suspend", device.address)
        if not error:
            device.set_powered(event == RESUME)
        return error

    # The host's stage-2

    def _snapshot(self, driver: PkvmIommuDriver) -> None:
        """Tell a new driver what the host does not own; it starts from a map of everything else."""
        if not driver.has("host_stage2_idmap_prepare"):
            return
        table = self._hyp.host.table
        for address, level, descriptor, _ in list(visit_leaves(table, 0, 1 << table.va_bits)):
            if descriptor and not descriptor & DESC_VALID:
                driver.call("host_stage2_idmap_prepare", address, address + LEVEL_SIZE[level], 0)

    def _idmap(self, start: int, end: int, prot: int) -> None:
        for address in list(self.drivers):
            driver = PkvmIommuDriver(self._hyp, address)
            if driver.state == READY:
                driver.call("host_stage2_idmap_prepare", start, end, prot)
        powered = [device for device in self._all() if device.powered]
        for device in powered:
            device.driver.call("host_stage2_idmap_apply", device.address, start, end)
        for device in powered:
            device.driver.call("host_stage2_idmap_complete", device.address)

    def _at(self, address: int) -> PkvmIommu | None:
        return next((device for device in self._all() if device.pa <= address < device.end), None)

    def _wants_abort(self, address: int) -> bool:
        device = self._at(address)
        return device is not None and device.driver.has("host_dabt_handler")

    def _handle_abort(self, registers: int, esr: int, address: int) -> bool:
        device = self._at(address)
        assert device is not None
        offset = address - device.pa
        return bool(device.driver.call("host_dabt_handler", device.address, registers, esr, offset) & 1)

    # Helpers

    def _all(self) -> list[PkvmIommu]:
        return [PkvmIommu(self._hyp, address) for address in self.devices]

    def _find(self, device_id: int) -> PkvmIommu | None:
        return next((device for device in self._all() if device.id == device_id), None)

    def _is_mmio(self, pa: int, size: int) -> bool:
        limit = 1 << self._hyp.host.table.va_bits
        if pa >= limit or not size or size > limit - pa:
            return False
        return all(pa + size <= r.base or r.end <= pa for r in self._hyp.ownership.memory.regions)

    def _list_head(self, which: int) -> int:
        """Hyp VA of the head of the list of drivers (0) or devices (1)."""
        if not self.lists:
            self.lists = self._hyp.stage1.va_of(self._hyp._own_pages(0))
            for head in (self.lists, self.lists + 16):
                self._hyp.write_u64(head, head)
                self._hyp.write_u64(head + 8, head)
        return self.lists + 16 * which

    def _take_lock(self) -> None:
        if self.lock_is_lost:
            raise HypBug(
                "the IOMMU registration lock was lost when a driver was refused (NULL, or registered twice): the hypervisor waits "
                "for ever"
            )
