"""Devices of the driver core: ``struct platform_device`` in guest memory, and what the core keeps about each."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.kernel.devicetree import layouts
from pkvm_emu.kernel.devicetree.addresses import interrupts, window, windows
from pkvm_emu.kernel.devicetree.irq import Interrupts
from pkvm_emu.kernel.devicetree.layouts import DeviceLayout, layout_of_module
from pkvm_emu.kernel.devicetree.memory import Arena
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

_NAME_LIMIT = 256
#: Buses whose children become platform devices at boot (``of_default_bus_match_table``).
_BUSES = frozenset(("simple-bus", "simple-mfd", "isa"))
#: The first line whose platform devices have no interrupt resources any more.
_NO_IRQ_RESOURCES = (5, 18)


class Resource(NamedTuple):
    """One ``struct resource``: inclusive range, name, flags, and its address in guest memory."""

    start: int
    end: int
    name: str
    flags: int
    address: int


class Managed(NamedTuple):
    """Something that goes away with its device: what it is, and two values whose meaning depends on that."""

    kind: str
    value: int
    extra: int = 0


class Device(State):
    """One ``struct device``.

    Attributes:
        address: kernel VA of the ``struct device``.
        platform: kernel VA of the ``struct platform_device`` around it; 0 for others.
        name: ``dev_name``.
        driver: kernel VA of the ``struct platform_driver`` it is bound to (or being probed by); 0 without.
        driver_name: that driver's name.
        is_bound: probe succeeded.
        managed: ``devm_*`` resources, oldest first.
        usage: runtime-PM usage count.
        disable_depth: runtime PM is off while this is above 0, as it is in a new device.
        status: ``active`` or ``suspended``; ``suspending`` and ``resuming`` while the driver's callback runs.
        suppliers: addresses of devices it was linked to by ``device_link_add``.
    """

    def __init__(self, kernel: Kernel, address: int, name: str, layout: DeviceLayout, node: OfNode | None) -> None:
        journal = kernel.machine.journal
        super().__init__(journal)
        self._layout = layout
        self._node = node
        self.address = address
        self.platform = 0
        self.name = name
        self.driver = 0
        self.driver_name = ""
        self.is_bound = False
        self.managed: StateList[Managed] = StateList(journal)
        self.resources: tuple[Resource, ...] = ()
        self.usage = 0
        self.disable_depth = 1
        self.status = "suspended"
        self.suppliers: tuple[int, ...] = ()

    @property
    def layout(self) -> DeviceLayout:
        """Where its members are."""
        return self._layout

    @property
    def node(self) -> OfNode | None:
        """Its device-tree node."""
        return self._node


@kernel_part
class Devices(State):
    """All devices that drivers have met.

    Attributes:
        by_address: by ``struct device`` address.
        by_node: ``struct device`` address by node address.
        populated: node addresses whose children a driver turned into devices (``of_platform_populate``).
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.devices")
        self._kernel = kernel
        self._arena = Arena(kernel, "kernel.devices.memory")
        self.by_address: StateDict[int, Device] = StateDict(journal, "kernel.devices.list")
        self.by_node: StateDict[int, int] = StateDict(journal, "kernel.devices.nodes")
        self.populated: StateDict[int, int] = StateDict(journal, "kernel.devices.populated")
        #: Memory of ``devres_alloc`` that is not tied to a device yet: its release function.
        self.releases: StateDict[int, int] = StateDict(journal, "kernel.devices.releases")
        #: ``struct device_link`` by consumer and supplier; ``struct reserved_mem`` by node and layout.
        self.links: StateDict[tuple[int, int], int] = StateDict(journal, "kernel.devices.links")
        self.reserved: StateDict[tuple[int, int], int] = StateDict(journal, "kernel.devices.reserved")
        #: Physical ranges that drivers requested, by start: end (inclusive) and owner.
        self.regions: StateDict[int, tuple[int, str]] = StateDict(journal, "kernel.devices.regions")

    def layout_for(self, module: LoadedModule | None) -> DeviceLayout:
        """The structure layout that a module was compiled with."""
        return layout_of_module(self._kernel.generation.kernel, None if module is None else module.file)

    def caller_layout(self) -> DeviceLayout:
        """The layout of the module that called the function which runs."""
        return self.layout_for(self._kernel.loader.find(self._kernel.machine.engine.read("x30") - 4))

    # Finding and making

    def is_platform_node(self, node: OfNode) -> bool:
        """Whether the kernel makes a platform device of a node by itself: it is compatible with something, available, and
        lies at the root, on a simple bus, or below a node that a driver populated.
        """
        tree, parent = node.tree, node.parent
        if parent is None or not tree.is_available or "compatible" not in tree.properties:
            return False
        return self._is_bus(parent)

    def _is_bus(self, node: OfNode) -> bool:
        if node.parent is None or node.address in self.populated:
            return True
        if not node.tree.is_available or not _BUSES.intersection(node.tree.strings("compatible")):
            return False
        return self._is_bus(node.parent)

    def of_node(self, node: OfNode, layout: DeviceLayout | None = None) -> Device:
        """The platform device of a node, made where there is none yet."""
        address = self.by_node.get(node.address)
        if address is not None:
            return self.by_address[address]
        return self._make(node, layout or self.caller_layout())

    def existing(self, node: OfNode) -> Device | None:
        """The platform device of a node, if it has one."""
        address = self.by_node.get(node.address)
        return None if address is None else self.by_address[address]

    def at(self, address: int) -> Device:
        """The device at a ``struct device *``; one that a module made itself is taken in as it is."""
        device = self.by_address.get(address)
        if device is None:
            layout = self.caller_layout()
            device = Device(
                self._kernel, address, self._read_name(address, layout), layout, self._read_node(address, layout)
            )
            self.by_address[address] = device
        return device

    def of_platform(self, address: int) -> Device:
        """The device of a ``struct platform_device *``."""
        return self.at(address + layouts.OWN_HEADERS.device)

    def _read_name(self, address: int, layout: DeviceLayout) -> str:
        memory = self._kernel.memory
        pointer = memory.read_u64(address + layout.init_name)
        if not pointer and layout.kobject_name is not None:
            pointer = memory.read_u64(address + layout.kobject_name)
        return memory.read_cstr(pointer, _NAME_LIMIT).decode("latin-1") if pointer else ""

    def _read_node(self, address: int, layout: DeviceLayout) -> OfNode | None:
        return self._kernel.part(DeviceTree).nodes.get(self._kernel.memory.read_u64(address + layout.of_node))

    def rename(self, device: Device, name: str) -> None:
        """``dev_set_name``"""
        device.name = name
        text = self._arena.string(name)
        field = device.layout.init_name if device.layout.kobject_name is None else device.layout.kobject_name
        self._kernel.memory.write_u64(device.address + field, text)

    def allocate(self, size: int) -> int:
        """Zeroed memory for a structure of the driver core that stays."""
        return self._arena.allocate(size)

    def string(self, text: str) -> int:
        """A string that stays."""
        return self._arena.string(text)

    # Platform devices

    def _make(self, node: OfNode, layout: DeviceLayout) -> Device:
        memory = self._kernel.memory
        platform = self._arena.allocate(layout.size)
        device = Device(self._kernel, platform + layout.device, self.bus_id(node), layout, node)
        device.platform = platform
        self.by_address[device.address] = device
        self.by_node[node.address] = device.address
        self.rename(device, device.name)
        memory.write_u64(platform, memory.read_u64(node.address + layouts.NODE.name))
        memory.write_u32(platform + 8, 0xFFFF_FFFF)
        at = device.address
        memory.write_u64(at + layout.of_node, node.address)
        if layout.fwnode is not None:
            memory.write_u64(at + layout.fwnode, node.address + layouts.NODE.fwnode)
        if layout.dma_mask is not None and layout.coherent_dma_mask is not None:
            memory.write_u64(platform + layout.platform_dma_mask, 0xFFFF_FFFF)
            memory.write_u64(at + layout.dma_mask, platform + layout.platform_dma_mask)
            memory.write_u64(at + layout.coherent_dma_mask, 0xFFFF_FFFF)
        memory.write_u64(node.address + layouts.NODE.fwnode_dev, at)
        device.resources = self._make_resources(node, layout, platform)
        return device

    def _make_resources(self, node: OfNode, layout: DeviceLayout, platform: int) -> tuple[Resource, ...]:
        memory, tree = self._kernel.memory, node.tree
        names = tree.strings("reg-names")
        rows = [
            (
                one.start,
                one.start + one.size - 1,
                names[index] if index < len(names) else node.name,
                layouts.IORESOURCE_MEM,
            )
            for index, one in enumerate(windows(tree))
        ]
        root = self._kernel.part(DeviceTree).tree
        if self._kernel.generation.kernel < _NO_IRQ_RESOURCES and root is not None:
            names = tree.strings("interrupt-names")
            for index, one in enumerate(interrupts(root, tree)):
                number = self._kernel.part(Interrupts).map(one.hwirq, one.trigger)
                name = names[index] if index < len(names) else node.name
                rows.append((number, number, name, layouts.IORESOURCE_IRQ | one.trigger))
        if not rows:
            return ()
        array = self._arena.allocate(len(rows) * layout.resource_size)
        found = []
        for index, (start, end, name, flags) in enumerate(rows):
            address = array + index * layout.resource_size
            memory.write(address, struct.pack("<QQQQ", start, end & (1 << 64) - 1, self._arena.string(name), flags))
            found.append(Resource(start, end, name, flags, address))
        memory.write_u32(platform + layout.num_resources, len(rows))
        memory.write_u64(platform + layout.resource, array)
        return tuple(found)

    def bus_id(self, node: OfNode) -> str:
        """``of_device_make_bus_id``: ``10000000.smmu``, and without an address the names up to one that has one."""
        name = ""
        at: OfNode | None = node
        while at is not None and at.parent is not None:
            where = window(at.tree)
            if where is not None:
                tail = f":{name}" if name else ""
                return f"{where.start:x}.{at.tree.base_name}{tail}"
            name = f"{at.name}:{name}" if name else at.name
            at = at.parent
        return name
