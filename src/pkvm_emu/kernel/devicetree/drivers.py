"""The platform bus: drivers, matching, probe and remove, called in the guest.

Source: ``drivers/base/{platform,dd}.c``, ``drivers/of/platform.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import to_signed
from pkvm_emu.kernel.devicetree import devres
from pkvm_emu.kernel.devicetree.devices import Device, Devices
from pkvm_emu.kernel.devicetree.layouts import DRIVER_PLAIN, DRIVER_WITH_REMOVE_NEW, DeviceLayout, DriverLayout
from pkvm_emu.kernel.devicetree.matching import match_table
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

ENODEV, ENXIO, EBUSY, EPROBE_DEFER = 19, 6, 16, 517
#: The first line that reports a failed probe as an error of the device.
_PROBE_ERROR_OF_DEVICE = (6, 12)
_ERROR, _WARNING = 3, 4


class Driver(NamedTuple):
    """A registered driver: its structure in the guest, name, match table, owner, and the layouts it was compiled with."""

    address: int
    name: str
    match_table: int
    probe: int
    structure: DriverLayout
    devices: DeviceLayout
    is_closed: bool = False


@kernel_part
class PlatformBus(State):
    """Registered drivers and the binding of devices.

    Attributes:
        drivers: by address of the ``struct platform_driver``, in order of registration.
        bound: addresses of bound devices, in order of their probe.
        deferred: devices whose probe was deferred, and the driver that did.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.platform")
        self._kernel = kernel
        self.drivers: StateDict[int, Driver] = StateDict(journal, "kernel.platform.drivers")
        self.bound: StateList[int] = StateList(journal, "kernel.platform.bound")
        self.deferred: StateDict[int, int] = StateDict(journal, "kernel.platform.deferred")
        self._retrying = False

    def register(self, address: int, owner: int, probe: int = 0) -> int:
        """Register a driver and probe every device that it matches.

        Args:
            address: its ``struct platform_driver``.
            owner: ``THIS_MODULE``.
            probe: the probe function of ``platform_driver_probe``; 0: the structure's own.

        Returns:
            0, whatever the probes return; -EBUSY for a name that is registered already.
        """
        memory = self._kernel.memory
        structure = DRIVER_WITH_REMOVE_NEW if memory.read_u64(address + DRIVER_WITH_REMOVE_NEW.name) else DRIVER_PLAIN
        name = self._text(memory.read_u64(address + structure.name))
        if any(driver.name == name for driver in self.drivers.values()):
            self._kernel.log.write(f"Error: Driver '{name}' is already registered, aborting...", _ERROR)
            return -EBUSY
        memory.write_u64(address + structure.owner, owner)
        layout = self._kernel.part(Devices).layout_for(self._kernel.loader.find(owner))
        table = memory.read_u64(address + structure.of_match_table)
        probe = probe or memory.read_u64(address + structure.probe)
        driver = self.drivers[address] = Driver(address, name, table, probe, structure, layout)
        result = self._add_groups(driver)
        if result:
            del self.drivers[address]
            return result
        for node in self._kernel.part(DeviceTree).all_nodes():
            self._attach(driver, node)
        return 0

    def bound_to(self, address: int) -> list[Device]:
        """Devices bound to a driver, in order of their probe."""
        devices = self._kernel.part(Devices)
        found = (devices.by_address[device] for device in self.bound)
        return [device for device in found if device.driver == address]

    def close(self, address: int) -> None:
        """Let a driver match no further devices (``platform_driver_probe``)."""
        self.drivers[address] = self.drivers[address]._replace(is_closed=True)

    def unregister(self, address: int) -> None:
        """Unbind a driver's devices, last probed first, and forget the driver."""
        for device in reversed(self.bound_to(address)):
            self.unbind(device)
        for waiting, driver in list(self.deferred.items()):
            if driver == address:
                del self.deferred[waiting]
        gone = self.drivers.pop(address, None)
        if gone is not None and self._pointer(gone, gone.structure.groups):
            from pkvm_emu.kernel.fs.driver_groups import remove_driver

            remove_driver(self._kernel, address + gone.structure.driver)

    def probe_new(self) -> None:
        """Offer devices that appeared to the registered drivers."""
        for node in list(self._kernel.part(DeviceTree).all_nodes()):
            for driver in list(self.drivers.values()):
                self._attach(driver, node)

    def unbind(self, device: Device) -> None:
        """Call a bound device's remove function and release what it holds."""
        driver = self.drivers[device.driver]
        memory = self._kernel.memory
        remove = memory.read_u64(driver.address + driver.structure.remove)
        if driver.structure.remove_new is not None:
            remove = memory.read_u64(driver.address + driver.structure.remove_new) or remove
        groups = self._pointer(driver, driver.structure.dev_groups)
        if groups and device.is_bound:
            from pkvm_emu.kernel.fs.driver_groups import remove_device_groups

            remove_device_groups(self._kernel, device.address, groups)
        if remove:
            self._kernel.call(remove, device.platform)
        self.bound.remove(device.address)
        self._let_go(device)

    # Parts

    def _attach(self, driver: Driver, node: OfNode) -> None:
        devices = self._kernel.part(Devices)
        if (
            driver.is_closed
            or not devices.is_platform_node(node)
            or match_table(self._kernel, driver.match_table, node) is None
        ):
            return
        device = devices.existing(node) or devices.of_node(node, driver.devices)
        if not device.driver:
            self._probe(driver, device)

    def _probe(self, driver: Driver, device: Device) -> None:
        kernel = self._kernel
        device.driver, device.driver_name = driver.address, driver.name
        if device.layout.driver is not None:
            kernel.memory.write_u64(device.address + device.layout.driver, driver.address + driver.structure.driver)
        result = to_signed(kernel.call(driver.probe, device.platform)) if driver.probe else 0
        if result == 0:
            device.is_bound = True
            self.bound.append(device.address)
            self.deferred.pop(device.address, None)
            self._add_device_groups(driver, device)
            self._retry_deferred()
            return
        self._let_go(device)
        if result == -EPROBE_DEFER:
            self.deferred[device.address] = driver.address
        elif result not in (-ENODEV, -ENXIO):
            self._report(driver, device, result)

    def _pointer(self, driver: Driver, offset: int) -> int:
        return self._kernel.memory.read_u64(driver.address + offset)

    def _add_groups(self, driver: Driver) -> int:
        groups = self._pointer(driver, driver.structure.groups)
        if not groups:
            return 0
        # Few drivers have files, and the file system is not loaded for the others.
        from pkvm_emu.kernel.fs.driver_groups import add_driver_groups

        return add_driver_groups(self._kernel, driver.address + driver.structure.driver, driver.name, groups)

    def _add_device_groups(self, driver: Driver, device: Device) -> None:
        groups = self._pointer(driver, driver.structure.dev_groups)
        if not groups:
            return
        from pkvm_emu.kernel.fs.driver_groups import add_device_groups

        if add_device_groups(self._kernel, device.address, groups):
            self._kernel.log.write(f"{driver.name} {device.name}: device_add_groups() failed", _ERROR)
            device.is_bound = False
            self.unbind(device)

    def _report(self, driver: Driver, device: Device, result: int) -> None:
        if self._kernel.generation.kernel >= _PROBE_ERROR_OF_DEVICE:
            text = f"{driver.name} {device.name}: probe with driver {driver.name} failed with error {result}"
            self._kernel.log.write(text, _ERROR)
        else:
            self._kernel.log.write(f"{driver.name}: probe of {device.name} failed with error {result}", _WARNING)

    def _retry_deferred(self) -> None:
        if self._retrying:
            return
        self._retrying = True
        try:
            devices = self._kernel.part(Devices)
            while self.deferred:
                waiting = list(self.deferred.items())
                for address, driver in waiting:
                    del self.deferred[address]
                    self._probe(self.drivers[driver], devices.by_address[address])
                if len(self.deferred) == len(waiting):
                    return
        finally:
            self._retrying = False

    def _let_go(self, device: Device) -> None:
        devres.release_all(self._kernel, device)
        memory, layout = self._kernel.memory, device.layout
        device.driver, device.driver_name, device.is_bound = 0, "", False
        memory.write_u64(device.address + layout.driver_data, 0)
        if layout.driver is not None:
            memory.write_u64(device.address + layout.driver, 0)

    def _text(self, pointer: int) -> str:
        return self._kernel.memory.read_cstr(pointer, 256).decode("latin-1") if pointer else ""
