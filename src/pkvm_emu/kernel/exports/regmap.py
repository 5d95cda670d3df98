"""Register maps over memory-mapped registers (``drivers/base/regmap``, ``drivers/mfd/syscon.c``): syscon and ``regmap_init_mmio``.

Maps over buses (I2C, SPI, PMIC) are not served: their devices are not there.
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOENT, ENOMEM
from typing import NamedTuple

from pkvm_emu.abi.errno import EPROBE_DEFER
from pkvm_emu.kernel.devicetree.addresses import window
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.exports.io import device_load, device_store
from pkvm_emu.kernel.exports.vmalloc import ioremap
from pkvm_emu.kernel.guest_access import load_u32, misuse, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part, kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import U32, U64, Bool, Ptr
from pkvm_emu.machine.state import State, StateDict

_BYTES = 64
_WORD = 4


class Map(NamedTuple):
    """Where the registers are (kernel VA), and how many bytes there are; 0: not known."""

    base: int
    size: int


@kernel_part
class Regmaps(State):
    """Register maps by address, and that of each syscon node."""

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.regmaps")
        self._kernel = kernel
        self.maps: StateDict[int, Map] = StateDict(journal, "kernel.regmaps.maps")
        #: The map that a driver made for a device.
        self.owned: StateDict[int, int] = StateDict(journal, "kernel.regmaps.owned")
        self.syscons: StateDict[int, int] = StateDict(journal, "kernel.regmaps.syscons")

    def make(self, base: int, size: int) -> int:
        """A map; its address, or -ENOMEM."""
        address = self._kernel.part(Slab).kmalloc(_BYTES, line_facts(self._kernel.generation.kernel).gfp_zero)
        if address is None:
            return -ENOMEM
        self.maps[address] = Map(base, size)
        return address

    def syscon(self, node: OfNode | None) -> int:
        """The map of a syscon node, made where there is none; or -errno."""
        if node is None:
            return -ENODEV
        known = self.syscons.get(node.address)
        if known is not None:
            return known
        where = window(node.tree)
        if where is None:
            return -ENOMEM
        base = ioremap(self._kernel, where.start, where.size)
        made = self.make(base, where.size) if base else -ENOMEM
        if made > 0:
            self.syscons[node.address] = made
        return made


def _map(kernel: Kernel, regmap: int) -> Map:
    found = kernel.part(Regmaps).maps.get(regmap)
    if found is None:
        raise misuse(kernel, f"regmap {regmap:#x}: that is no register map")
    return found


def _is_wrong(found: Map, register: int) -> bool:
    return bool(register % _WORD) or bool(found.size and register + _WORD > found.size)


@kernel_symbol("regmap_read", runs_guest=True)
def regmap_read(kernel: Kernel, regmap: Ptr, register: U32, value: Ptr) -> int:
    """Read a register; 0, or -EINVAL off word boundaries and outside the map."""
    found = _map(kernel, regmap)
    if _is_wrong(found, register):
        return -EINVAL
    store_uint(kernel, value, device_load(kernel, found.base + register, _WORD), _WORD)
    return 0


@kernel_symbol("regmap_write", runs_guest=True)
def regmap_write(kernel: Kernel, regmap: Ptr, register: U32, value: U32) -> int:
    """Write a register; 0 or -EINVAL."""
    found = _map(kernel, regmap)
    if _is_wrong(found, register):
        return -EINVAL
    device_store(kernel, found.base + register, value, _WORD)
    return 0


@kernel_symbol("regmap_update_bits_base", runs_guest=True)
def regmap_update_bits(
    kernel: Kernel, regmap: Ptr, register: U32, mask: U32, value: U32, change: Ptr, asynchronous: Bool, force: Bool
) -> int:
    """Change bits of a register; it is written where they differ (or by force). 0 or -EINVAL; ``*change``: it was."""
    found = _map(kernel, regmap)
    if _is_wrong(found, register):
        return -EINVAL
    old = device_load(kernel, found.base + register, _WORD)
    new = old & ~mask | value & mask
    if change:
        store_uint(kernel, change, new != old, 1)
    if new != old or force:
        device_store(kernel, found.base + register, new, _WORD)
    return 0


@kernel_symbol("regmap_bulk_read", runs_guest=True)
def regmap_bulk_read(kernel: Kernel, regmap: Ptr, register: U32, values: Ptr, count: U64) -> int:
    """Read neighbouring registers; 0 or the first error."""
    for index in range(count):
        result = regmap_read(kernel, regmap, register + index * _WORD, values + index * _WORD)
        if result:
            return result
    return 0


@kernel_symbol("regmap_bulk_write", runs_guest=True)
def regmap_bulk_write(kernel: Kernel, regmap: Ptr, register: U32, values: Ptr, count: U64) -> int:
    """Write neighbouring registers; 0 or the first error."""
    for index in range(count):
        result = regmap_write(kernel, regmap, register + index * _WORD, load_u32(kernel, values + index * _WORD))
        if result:
            return result
    return 0


@kernel_symbol("__devm_regmap_init_mmio_clk", "__regmap_init_mmio_clk", runs_guest=True)
def regmap_init_mmio(kernel: Kernel, device: Ptr, clock: Ptr, registers: Ptr, config: Ptr) -> int:
    """A map over registers that a driver mapped; or ERR_PTR(-ENOMEM)."""
    maps = kernel.part(Regmaps)
    made = maps.make(registers, 0)
    if made > 0 and device:
        maps.owned[device] = made
    return made


@kernel_symbol("dev_get_regmap")
def dev_get_regmap(kernel: Kernel, device: Ptr, name: Ptr) -> int:
    """The map that a driver made for a device, or NULL: parents on I2C, SPI and SPMI are not there."""
    maps = kernel.part(Regmaps)
    found = maps.owned.get(device, 0)
    return found if found in maps.maps else 0


@kernel_symbol("regmap_exit", runs_guest=True)
def regmap_exit(kernel: Kernel, regmap: Ptr) -> None:
    """Forget a map."""
    if kernel.part(Regmaps).maps.pop(regmap, None) is not None:
        kernel.part(Slab).kfree(regmap, "regmap_exit")


# System controllers


def _is_syscon(node: OfNode | None) -> bool:
    return node is not None and "syscon" in node.tree.strings("compatible")


@kernel_symbol("syscon_node_to_regmap", runs_guest=True)
def syscon_node_to_regmap(kernel: Kernel, node: Ptr) -> int:
    """The registers of a syscon node; ERR_PTR(-EPROBE_DEFER) where the node is none."""
    found = kernel.part(DeviceTree).nodes.get(node)
    return kernel.part(Regmaps).syscon(found) if _is_syscon(found) else -EPROBE_DEFER


@kernel_symbol("device_node_to_regmap", runs_guest=True)
def device_node_to_regmap(kernel: Kernel, node: Ptr) -> int:
    """The same of any node with registers."""
    return kernel.part(Regmaps).syscon(kernel.part(DeviceTree).nodes.get(node))


@kernel_symbol("syscon_regmap_lookup_by_compatible", runs_guest=True)
def syscon_by_compatible(kernel: Kernel, compatible: Ptr) -> int:
    """The first syscon that is compatible with a string; or ERR_PTR(-ENODEV)."""
    wanted = text(kernel, compatible)
    nodes = kernel.part(DeviceTree).all_nodes()
    found = next((node for node in nodes if wanted in node.tree.strings("compatible")), None)
    return kernel.part(Regmaps).syscon(found)


@kernel_symbol("syscon_regmap_lookup_by_phandle", runs_guest=True)
def syscon_by_phandle(kernel: Kernel, node: Ptr, name: Ptr) -> int:
    """The syscon that a property points at (the node itself without one); ERR_PTR(-ENODEV), (-ENOENT)."""
    found = kernel.part(DeviceTree).nodes.get(node)
    if found is None:
        return -ENODEV
    if not name:
        return kernel.part(Regmaps).syscon(found)
    cells = found.tree.cells(text(kernel, name)) if text(kernel, name) in found.tree.properties else []
    if not cells:
        return -ENODEV
    target = next((one for one in kernel.part(DeviceTree).all_nodes() if one.tree.phandle == cells[0]), None)
    return kernel.part(Regmaps).syscon(target) if target is not None else -ENOENT


@kernel_symbol("syscon_regmap_lookup_by_phandle_optional", runs_guest=True)
def syscon_by_phandle_optional(kernel: Kernel, node: Ptr, name: Ptr) -> int:
    """The same, and NULL without the property."""
    result = syscon_by_phandle(kernel, node, name)
    return 0 if result == -ENODEV else result
