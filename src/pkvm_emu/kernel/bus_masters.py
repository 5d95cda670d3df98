"""The made-up board's users of devices: nodes compatible with ``pkvm-emu,dma-master``, and the driver behind them.

A driver that leaves power to runtime PM (an IOMMU's, mostly) does its work when somebody uses the device. On the board of a product
these are the drivers of the bus masters behind it; a board that is made up has one node that stands for them all::

    dma-master@10010000 {
            compatible = "pkvm-emu,dma-master";
            reg = <0 0x10010000 0 0x10000>;
            suppliers = <&smmu>;
    };

After the boot its driver takes each supplier into use, as a master's does for a DMA: runtime resume, a buffer, its address into the
master's registers, and where the supplier is an IOMMU with a model, the access of the master through it. Then it lets go. With
``iommus`` the master is behind an IOMMU of the host's core: it is put into its default domain, and the buffer is mapped there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pkvm_emu.devices.model import DmaError, Model
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.devicetree.addresses import window
from pkvm_emu.kernel.devicetree.devices import Device, Devices
from pkvm_emu.kernel.devicetree.mmio import MmioWindows
from pkvm_emu.kernel.devicetree.nodes import DeviceTree
from pkvm_emu.kernel.exports.device_log import prefix
from pkvm_emu.kernel.exports.pm import GET_PUT, pm_runtime_resume, pm_runtime_suspend
from pkvm_emu.kernel.iommu_clients import READ, IommuClients, IommuUnits
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.vmalloc import Vmalloc
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.devicetree.nodes import OfNode
    from pkvm_emu.kernel.kernel import Kernel

COMPATIBLE, SUPPLIERS = "pkvm-emu,dma-master", "suppliers"
_DRIVER, _PAGE_SIZE = "pkvm-emu-dma-master", 4096
_ERROR, _INFO = 3, 6
_WORD = 0x5A5A_5A5A_5A5A_5A5A


@kernel_part
class BusMasters(State):
    """Who uses devices that are powered on demand.

    Args:
        kernel: whose devices.

    Attributes:
        callbacks: EL1 addresses of ``int callback(struct device *, bool on)`` that drivers of bus masters call besides runtime PM,
            by the name of the driver that it would be.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.machine.journal, "kernel.bus_masters")
        self._kernel = kernel
        self.callbacks: StateDict[str, int] = StateDict(kernel.machine.journal)

    def run(self) -> None:
        """Let each master of the board use its suppliers once. Devices without a driver, or without runtime PM, are left alone."""
        for master, supplier in list(self._pairs()):
            self._configure(master, supplier)
            if self.resume(supplier):
                continue
            self._transfer(master, supplier)
            self.suspend(supplier)

    def resume(self, device: Device | str) -> int:
        """Take a device into use: runtime resume, then the callbacks with true.

        Args:
            device: the device, or its name (``10000000.s2mpu``).

        Returns:
            0, or what refused (negative); the use is given back then.

        Raises:
            UsageError: there is no such device.
        """
        found = self._device(device)
        result = min(pm_runtime_resume(self._kernel, found.address, GET_PUT), 0) or self._call_back(found, True)
        if result:
            found.usage -= 1
            self._say(found, _ERROR, f"cannot be resumed: {result}")
        return result

    def suspend(self, device: Device | str) -> int:
        """Let a device go: the callbacks with false, then runtime suspend; arguments and results as for :meth:`resume`."""
        found = self._device(device)
        result = self._call_back(found, False) or min(pm_runtime_suspend(self._kernel, found.address, GET_PUT), 0)
        if result:
            self._say(found, _ERROR, f"cannot be suspended: {result}")
        return result

    def _configure(self, master: OfNode, supplier: Device) -> None:
        """Put a master behind the IOMMU that its node names, before its driver is probed."""
        kernel = self._kernel
        units = kernel.part(IommuUnits).units.values()
        if master.value("iommus") is None or not any(device == supplier.address for _, device in units):
            return
        device = kernel.part(Devices).of_node(master, supplier.layout)
        device.driver_name = device.driver_name or _DRIVER
        result = kernel.part(IommuClients).configure(device)
        if result:
            self._say(device, _ERROR, f"cannot be put behind {supplier.name}: {result}")

    def _pairs(self) -> Iterator[tuple[OfNode, Device]]:
        tree, devices = self._kernel.part(DeviceTree), self._kernel.part(Devices)
        by_phandle = {node.tree.phandle: node for node in tree.all_nodes() if node.tree.phandle}
        for node in tree.all_nodes():
            if node.tree.is_available and COMPATIBLE in node.tree.strings("compatible"):
                for phandle in node.tree.cells(SUPPLIERS):
                    supplier = by_phandle.get(phandle)
                    device = devices.existing(supplier) if supplier is not None else None
                    if device is not None and device.is_bound and not device.disable_depth:
                        yield node, device

    def _device(self, device: Device | str) -> Device:
        if isinstance(device, Device):
            return device
        known = self._kernel.part(Devices).by_address.values()
        found = next((one for one in known if one.name == device), None)
        if found is None:
            raise UsageError(f"no device {device!r}; there are: {', '.join(one.name for one in known) or 'none'}")
        return found

    def _call_back(self, device: Device, on: bool) -> int:
        for function in self.callbacks.values():
            result = self._kernel.call_s32(function, device.address, int(on))
            if result:
                return result
        return 0

    def _transfer(self, master: OfNode, supplier: Device) -> None:
        """A buffer: the host writes to it and tells the master, the master reads it."""
        kernel = self._kernel
        page = kernel.pages.alloc_pages(0)
        if page is None:
            return
        kernel.access("host_store64", kernel.memory.linear_va(page), _WORD)
        device = self._behind(master, supplier)
        mapping = kernel.part(IommuClients).map(device, page, _PAGE_SIZE, READ) if device is not None else None
        if device is not None and mapping is None:
            self._say(supplier, _ERROR, f"{master.name} gets no DMA address for its buffer at {page:#x}")
        else:
            self._read(master, supplier, page, page if mapping is None else mapping.address)
        if device is not None and mapping is not None:
            kernel.part(IommuClients).unmap(device, mapping)
        kernel.pages.free_pages(page, 0)

    def _behind(self, master: OfNode, supplier: Device) -> Device | None:
        """The device of a master that the supplier's driver has taken in, as an IOMMU's; None: there is no IOMMU in between."""
        kernel, clients = self._kernel, self._kernel.part(IommuClients)
        if not any(device == supplier.address for _, device in kernel.part(IommuUnits).units.values()):
            return None
        device = kernel.part(Devices).of_node(master, supplier.layout)
        return device if clients.domain_of(device.address) else None

    def _read(self, master: OfNode, supplier: Device, page: int, address: int) -> None:
        """The master is told an address of a buffer and reads there, through the IOMMU where that has a model."""
        kernel = self._kernel
        registers = window(master.tree)
        if registers is not None:
            area = kernel.part(Vmalloc)
            va = area.map_physical(registers.start, registers.size, "device")
            kernel.access("host_store64", va, address)
            area.release(va)
        model = self._model(supplier)
        if model is None or type(model).translate is Model.translate:
            return
        try:
            allowed = model.translate(self._stream(master), address, is_write=False) == page
        except DmaError:
            allowed = False
        said = "let" if allowed else "did not let"
        by = f" by DMA address {address:#x}" if address != page else ""
        self._say(supplier, _INFO, f"{said} {master.name} read its buffer at {page:#x}{by}")
        # What the IOMMU has to say about it comes before the master's driver goes on.
        kernel.part(MmioWindows).deliver()

    @staticmethod
    def _stream(master: OfNode) -> int:
        cells = master.tree.cells("iommus")
        return cells[1] if len(cells) > 1 else 0

    def _model(self, device: Device) -> Model | None:
        where = window(device.node.tree) if device.node is not None else None
        found = self._kernel.part(MmioWindows).bus.window_at(where.start) if where is not None else None
        return found.model if found is not None else None

    def _say(self, device: Device, level: int, text: str) -> None:
        self._kernel.log.write(f"{prefix(self._kernel, device.address)}{text}", level)
