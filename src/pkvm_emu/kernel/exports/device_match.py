"""Finding the devices of a driver, and the functions that say which one is meant (``drivers/base/{core,driver}.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.drivers import PlatformBus
from pkvm_emu.kernel.devicetree.layouts import NODE
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr


@kernel_symbol("driver_find_device", runs_guest=True)
def driver_find_device(kernel: Kernel, driver: Ptr, start: Ptr, data: Ptr, match: Ptr) -> int:
    """The first device bound to a ``struct device_driver``, behind ``start``, for which ``match(device, data)`` is not 0.

    NULL without one, and for a driver that is not registered.
    """
    bus = kernel.part(PlatformBus)
    owner = next((one.address for one in bus.drivers.values() if one.address + one.structure.driver == driver), 0)
    devices = [device.address for device in bus.bound_to(owner)] if owner else []
    first = devices.index(start) + 1 if start in devices else 0
    return next((device for device in devices[first:] if kernel.call_s32(match, device, data)), 0)


@kernel_symbol("device_match_of_node")
def device_match_of_node(kernel: Kernel, device: Ptr, node: Ptr) -> int:
    """Whether it is the device of a node."""
    return _of_node(kernel, device) == node


@kernel_symbol("device_match_fwnode")
def device_match_fwnode(kernel: Kernel, device: Ptr, fwnode: Ptr) -> int:
    """Whether it is the device of a ``struct fwnode_handle``."""
    return fwnode_of(kernel, device) == fwnode


@kernel_symbol("device_match_any")
def device_match_any(kernel: Kernel, device: Ptr, unused: Ptr) -> int:
    """Any device is the one."""
    return 1


def fwnode_of(kernel: Kernel, device: int) -> int:
    """``dev_fwnode``: that of the device-tree node, else the device's own; 0 without."""
    node, own = _of_node(kernel, device), kernel.part(Devices).at(device).layout.fwnode
    if node:
        return node + NODE.fwnode
    return kernel.memory.read_u64(device + own) if own is not None else 0


def _of_node(kernel: Kernel, device: int) -> int:
    return kernel.memory.read_u64(device + kernel.part(Devices).at(device).layout.of_node)
