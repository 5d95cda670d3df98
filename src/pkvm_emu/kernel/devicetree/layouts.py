"""Where members of device-tree and driver-core structures are, by kernel line.

Compiled modules read and write these members in place: ``dev_set_drvdata``, ``pdev->dev.of_node``, ``np->full_name`` are
inline functions and plain accesses. Sources: ``include/linux/{of,fwnode,device,platform_device,ioport,kobject}.h`` of the GKI
branches with their configuration (``CONFIG_PM_SLEEP``, ``DMA_CMA``, ``SWIOTLB_DYNAMIC`` and so on decide what lies before
``of_node``). ``verified`` says that modules of that line were seen to use the offsets: shipped ones, for 6.12 one
that was built with debug information. Others would be computed from the headers alone.

Modules that were compiled against this project's own headers have small structures of their own (:data:`OWN_HEADERS`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.kernel.devicetree.observed import of_node_offset


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """``struct device_node``: byte offsets, and its size. ``fwnode_ops`` and ``fwnode_dev`` are in its fwnode_handle."""

    size: int
    name: int = 0
    phandle: int = 8
    full_name: int = 16
    fwnode: int = 24
    properties: int = 96
    parent: int = 112
    child: int = 120
    sibling: int = 128
    fwnode_dev: int = 40
    lists: tuple[int, ...] = (48, 64)


@dataclass(frozen=True, slots=True)
class PropertyLayout:
    """``struct property``: byte offsets, and the size with its sysfs attribute."""

    size: int = 136
    name: int = 0
    length: int = 8
    value: int = 16
    next: int = 24


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """``struct platform_device`` and ``struct device``; a member that a structure does not have is None.

    Attributes:
        verified: shipped modules of the line use these offsets.
        device: offset of ``dev`` in ``struct platform_device``; the next members are offsets in that one.
        device_size: bytes of ``struct device``.
        size: bytes of ``struct platform_device``.
        resource_size: bytes of ``struct resource``: drivers index the array.
        reserved_base: offset of ``base`` in ``struct reserved_mem``; ``size`` follows it.
        of_node: the first of the members that are offsets in ``struct device``.
    """

    verified: bool
    size: int
    device_size: int
    num_resources: int
    resource: int
    platform_dma_mask: int
    of_node: int
    resource_size: int
    reserved_base: int
    device: int = 16
    parent: int = 96
    init_name: int = 112
    driver_data: int = 152
    platform_data: int = 144
    kobject_name: int | None = 0
    driver: int | None = 136
    fwnode: int | None = None
    dma_mask: int | None = None
    coherent_dma_mask: int | None = None
    cma_area: int | None = None
    iommu_group: int | None = None
    iommu: int | None = None


def _line(of_node: int, dma_mask: int, after_node: int, verified: bool, reserved_base: int = 32) -> DeviceLayout:
    """A row of a kernel line; ``after_node`` is what lies in ``struct device`` from ``of_node`` on, in bytes."""
    device_size = of_node + after_node
    platform = 16 + device_size
    return DeviceLayout(
        verified=verified,
        size=platform + 80,
        device_size=device_size,
        platform_dma_mask=platform,
        num_resources=platform + 24,
        resource=platform + 32,
        of_node=of_node,
        fwnode=of_node + 8,
        dma_mask=dma_mask,
        coherent_dma_mask=dma_mask + 8,
        cma_area=dma_mask + 64,
        iommu_group=of_node + 72,
        iommu=of_node + 80,
        resource_size=96,
        reserved_base=reserved_base,
    )


_DEVICES = {
    (5, 15): _line(of_node=752, dma_mask=672, after_node=160, verified=True),
    (6, 1): _line(of_node=744, dma_mask=664, after_node=168, verified=True),
    (6, 6): _line(of_node=768, dma_mask=664, after_node=168, verified=True),
    (6, 12): _line(of_node=744, dma_mask=640, after_node=168, verified=True, reserved_base=24),
}
#: What this project's headers declare, for all lines.
OWN_HEADERS = DeviceLayout(
    verified=True,
    size=600,
    device_size=552,
    platform_dma_mask=568,
    num_resources=576,
    resource=584,
    of_node=160,
    cma_area=232,
    iommu_group=240,
    iommu=248,
    resource_size=64,
    reserved_base=24,
)
_ROOM_BEHIND = 512
_OWN_RELEASE = "-pkvm-emu"
NODE = NodeLayout(size=248)
PROPERTY = PropertyLayout()


def device_layout(version: tuple[int, int]) -> DeviceLayout:
    """The row of a kernel line; of the newest known one that is not newer than ``version``."""
    return _DEVICES[max((known for known in _DEVICES if known <= version), default=min(_DEVICES))]


def with_of_node(row: DeviceLayout, of_node: int) -> DeviceLayout:
    """A row for a build whose locks are larger (lock debugging), so that ``of_node`` is further behind.

    What follows ``of_node`` may be larger too by an unknown amount: there is room for it.
    """
    shift = of_node - row.of_node
    room = shift + _ROOM_BEHIND
    return replace(
        row,
        of_node=of_node,
        fwnode=of_node + 8,
        dma_mask=None if row.dma_mask is None else row.dma_mask + shift,
        coherent_dma_mask=None if row.coherent_dma_mask is None else row.coherent_dma_mask + shift,
        cma_area=None if row.cma_area is None else row.cma_area + shift,
        # Lists and locks are in between, which grow too.
        iommu_group=None,
        iommu=None,
        device_size=row.device_size + room,
        size=row.size + room,
        platform_dma_mask=row.platform_dma_mask + room,
        num_resources=row.num_resources + room,
        resource=row.resource + room,
    )


def layout_of_module(version: tuple[int, int], file: ModuleFile | None) -> DeviceLayout:
    """The row for a module: builds of this project name themselves in the release, debug builds show in the code."""
    row = device_layout(version)
    if file is None:
        return row
    if _OWN_RELEASE in file.vermagic.partition(" ")[0]:
        return OWN_HEADERS
    of_node = of_node_offset(file, row.of_node)
    return row if of_node is None else with_of_node(row, of_node)


# struct resource (include/linux/ioport.h)
RESOURCE_START, RESOURCE_END, RESOURCE_NAME, RESOURCE_FLAGS = 0, 8, 16, 24
IORESOURCE_MEM, IORESOURCE_IRQ = 0x200, 0x400
#: ``struct of_device_id``: name[32], type[32], compatible[128], data.
MATCH_SIZE, MATCH_TYPE, MATCH_COMPATIBLE, MATCH_DATA = 200, 32, 64, 192


@dataclass(frozen=True, slots=True)
class DriverLayout:
    """``struct platform_driver``: offsets. ``remove_new`` is None where there is one ``remove`` only."""

    driver: int
    remove_new: int | None
    probe: int = 0
    remove: int = 8

    @property
    def name(self) -> int:
        """``driver.name``"""
        return self.driver

    @property
    def owner(self) -> int:
        """``driver.owner``"""
        return self.driver + 16

    @property
    def of_match_table(self) -> int:
        """``driver.of_match_table``"""
        return self.driver + 40

    @property
    def groups(self) -> int:
        """``driver.groups``"""
        return self.driver + 104

    @property
    def dev_groups(self) -> int:
        """``driver.dev_groups``"""
        return self.driver + 112


#: With and without a member ``remove_new``, which 6.3 brought, stable releases of 5.15 took over and 6.11 made a union.
DRIVER_PLAIN = DriverLayout(driver=40, remove_new=None)
DRIVER_WITH_REMOVE_NEW = DriverLayout(driver=48, remove_new=16)
