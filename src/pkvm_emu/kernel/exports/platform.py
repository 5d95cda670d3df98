"""Platform drivers and devices (``drivers/base/platform.c``, ``drivers/of/platform.c``), and links between devices."""

from __future__ import annotations

from pkvm_emu.kernel.devicetree import layouts
from pkvm_emu.kernel.devicetree.devices import Device, Devices, Resource
from pkvm_emu.kernel.devicetree.drivers import PlatformBus
from pkvm_emu.kernel.devicetree.nodes import DeviceTree
from pkvm_emu.kernel.exports.device_log import report
from pkvm_emu.kernel.exports.devres import map_resource
from pkvm_emu.kernel.exports.of import node_at
from pkvm_emu.kernel.exports.of_references import interrupt_number
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import U32, CStr, Ptr, VarArgs

ENXIO, EINVAL, ENODEV, ENOENT = 6, 22, 19, 2
_LINK_SIZE = 2048
_LINK_CONSUMER = 24
_BUS_SIZE = 256


@kernel_variable("platform_bus_type", _BUS_SIZE)
def platform_bus_type(kernel: Kernel) -> bytes:
    """``struct bus_type``: its name."""
    return kernel.part(Devices).string("platform").to_bytes(8, "little")


# Drivers


@kernel_symbol("__platform_driver_register", runs_guest=True)
def platform_driver_register(kernel: Kernel, driver: Ptr, owner: Ptr) -> int:
    """Register a driver; its probe runs here for each device that it matches. Probe errors do not come back."""
    return kernel.part(PlatformBus).register(driver, owner)


@kernel_symbol("__platform_driver_probe", runs_guest=True)
def platform_driver_probe(kernel: Kernel, driver: Ptr, probe: Ptr, owner: Ptr) -> int:
    """Register a driver for the devices that are there now; -ENODEV where none was bound (it is unregistered again)."""
    bus = kernel.part(PlatformBus)
    result = bus.register(driver, owner, probe)
    if result:
        return result
    if not bus.bound_to(driver):
        bus.unregister(driver)
        return -ENODEV
    bus.close(driver)
    return 0


@kernel_symbol("platform_driver_unregister", runs_guest=True)
def platform_driver_unregister(kernel: Kernel, driver: Ptr) -> None:
    """Remove the driver's devices, last probed first, and the driver."""
    kernel.part(PlatformBus).unregister(driver)


# Resources


@kernel_symbol("driver_for_each_device", runs_guest=True)
def driver_for_each_device(kernel: Kernel, driver: Ptr, start: Ptr, data: Ptr, function: Ptr) -> int:
    """Call ``function(device, data)`` for each device bound to a ``struct device_driver``, until one call returns something.

    Devices up to ``start`` are passed over. -EINVAL without a driver.
    """
    bus = kernel.part(PlatformBus)
    owner = next((one.address for one in bus.drivers.values() if one.address + one.structure.driver == driver), 0)
    if not driver:
        return -EINVAL
    devices = [device.address for device in bus.bound_to(owner)]
    first = devices.index(start) + 1 if start in devices else 0
    for device in devices[first:]:
        answer = kernel.call_s32(function, device, data)
        if answer:
            return answer
    return 0


def _resource(device: Device, kind: int, name: str | None = None, index: int = 0) -> Resource | None:
    found = [one for one in device.resources if one.flags & (layouts.IORESOURCE_MEM | layouts.IORESOURCE_IRQ) == kind]
    if name is not None:
        found = [one for one in found if one.name == name]
    return found[index] if index < len(found) else None


@kernel_symbol("platform_get_resource")
def platform_get_resource(kernel: Kernel, platform: Ptr, kind: U32, index: U32) -> int:
    """Resource number ``index`` of a kind; NULL. Interrupts are no resources from 5.18 on."""
    found = _resource(kernel.part(Devices).of_platform(platform), kind, index=index)
    return found.address if found is not None else 0


@kernel_symbol("platform_get_mem_or_io")
def platform_get_mem_or_io(kernel: Kernel, platform: Ptr, index: U32) -> int:
    """Memory resource number ``index``; NULL."""
    return platform_get_resource(kernel, platform, layouts.IORESOURCE_MEM, index)


@kernel_symbol("platform_get_resource_byname")
def platform_get_resource_byname(kernel: Kernel, platform: Ptr, kind: U32, name: CStr) -> int:
    """The resource of a kind with a name; NULL."""
    found = _resource(kernel.part(Devices).of_platform(platform), kind, name or "")
    return found.address if found is not None else 0


@kernel_symbol("devm_platform_ioremap_resource", runs_guest=True)
def devm_platform_ioremap_resource(kernel: Kernel, platform: Ptr, index: U32) -> int:
    """Map memory resource ``index``; an error pointer."""
    resource = platform_get_resource(kernel, platform, layouts.IORESOURCE_MEM, index)
    return map_resource(kernel, platform + layouts.OWN_HEADERS.device, resource)


@kernel_symbol("devm_platform_get_and_ioremap_resource", runs_guest=True)
def devm_platform_get_and_ioremap_resource(kernel: Kernel, platform: Ptr, index: U32, out: Ptr) -> int:
    """The same, and the resource itself in ``*out``."""
    resource = platform_get_resource(kernel, platform, layouts.IORESOURCE_MEM, index)
    if out:
        kernel.memory.write_u64(out, resource)
    return map_resource(kernel, platform + layouts.OWN_HEADERS.device, resource)


@kernel_symbol("devm_platform_ioremap_resource_byname", runs_guest=True)
def devm_platform_ioremap_resource_byname(kernel: Kernel, platform: Ptr, name: CStr) -> int:
    """Map the memory resource with a name; an error pointer."""
    resource = platform_get_resource_byname(kernel, platform, layouts.IORESOURCE_MEM, name)
    return map_resource(kernel, platform + layouts.OWN_HEADERS.device, resource)


# Interrupts


@kernel_symbol("platform_get_irq_optional")
def platform_get_irq_optional(kernel: Kernel, platform: Ptr, index: U32) -> int:
    """The Linux number of interrupt ``index``; -ENXIO without a word."""
    device = kernel.part(Devices).of_platform(platform)
    number = interrupt_number(kernel, device.node, index) if device.node is not None else None
    return -ENXIO if number is None else number


@kernel_symbol("platform_get_irq")
def platform_get_irq(kernel: Kernel, platform: Ptr, index: U32) -> int:
    """The same with a message for a missing one."""
    result = platform_get_irq_optional(kernel, platform, index)
    if result < 0:
        report(kernel, platform + layouts.OWN_HEADERS.device, result, f"IRQ index {index} not found\n")
    return result


@kernel_symbol("platform_get_irq_byname_optional")
def platform_get_irq_byname_optional(kernel: Kernel, platform: Ptr, name: CStr) -> int:
    """The Linux number of the interrupt with a name; -ENXIO without a word."""
    device = kernel.part(Devices).of_platform(platform)
    names = device.node.tree.strings("interrupt-names") if device.node is not None else []
    return platform_get_irq_optional(kernel, platform, names.index(name)) if name in names else -ENXIO


@kernel_symbol("platform_get_irq_byname")
def platform_get_irq_byname(kernel: Kernel, platform: Ptr, name: CStr) -> int:
    """The same with a message for a missing one."""
    result = platform_get_irq_byname_optional(kernel, platform, name)
    if result < 0:
        report(kernel, platform + layouts.OWN_HEADERS.device, result, f"IRQ {name} not found\n")
    return result


@kernel_symbol("platform_irq_count")
def platform_irq_count(kernel: Kernel, platform: Ptr) -> int:
    """How many interrupts a device has."""
    device, count = kernel.part(Devices).of_platform(platform), 0
    while device.node is not None and interrupt_number(kernel, device.node, count) is not None:
        count += 1
    return count


# Children of a node as devices


@kernel_symbol("of_platform_populate", "of_platform_default_populate", runs_guest=True)
def of_platform_populate(kernel: Kernel, root: Ptr, table: Ptr, lookup: Ptr, parent: Ptr) -> int:
    """Make devices of the children of a node (NULL: the root), and probe them."""
    node = node_at(kernel, root) or kernel.part(DeviceTree).find("/")
    if node is None:
        return -EINVAL
    kernel.part(Devices).populated[node.address] = parent
    kernel.part(PlatformBus).probe_new()
    return 0


@kernel_symbol("devm_of_platform_populate", runs_guest=True)
def devm_of_platform_populate(kernel: Kernel, device: Ptr) -> int:
    """The same for a device's own node."""
    node = kernel.part(Devices).at(device).node
    return of_platform_populate(kernel, node.address, 0, 0, device) if node is not None else -EINVAL


@kernel_symbol("of_platform_depopulate", "devm_of_platform_depopulate", runs_guest=True)
def of_platform_depopulate(kernel: Kernel, parent: Ptr) -> None:
    """Remove the devices that were made for a device's children."""
    devices, bus = kernel.part(Devices), kernel.part(PlatformBus)
    node = devices.at(parent).node
    if node is None or devices.populated.pop(node.address, None) is None:
        return
    for child in reversed(node.children):
        device = devices.existing(kernel.part(DeviceTree).nodes[child])
        if device is not None and device.is_bound:
            bus.unbind(device)


# Devices in general


@kernel_symbol("dev_set_name", runs_guest=True)
def dev_set_name(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> int:
    """Name a device."""
    devices = kernel.part(Devices)
    devices.rename(devices.at(device), kernel.format(fmt or "", args))
    return 0


@kernel_symbol("dev_name")
def dev_name(kernel: Kernel, device: Ptr) -> int:
    """A device's name (a function in this project's headers, inline in kernels)."""
    devices = kernel.part(Devices)
    return devices.string(devices.at(device).name)


@kernel_symbol("dev_driver_string")
def dev_driver_string(kernel: Kernel, device: Ptr) -> int:
    """The name of the driver, else of the bus."""
    devices = kernel.part(Devices)
    found = devices.at(device)
    return devices.string(found.driver_name or ("platform" if found.platform else ""))


@kernel_symbol("platform_device_put")
def platform_device_put(kernel: Kernel, platform: Ptr) -> None:
    """Drop a reference."""


@kernel_symbol("device_link_add")
def device_link_add(kernel: Kernel, consumer: Ptr, supplier: Ptr, flags: U32) -> int:
    """Make one device depend on another: ``struct device_link``, of which supplier and consumer are filled in; NULL."""
    devices = kernel.part(Devices)
    if not consumer or not supplier or consumer == supplier:
        return 0
    found = devices.at(consumer)
    known = devices.links.get((consumer, supplier))
    if known is not None:
        return known
    found.suppliers = (*found.suppliers, supplier)
    link = devices.links[(consumer, supplier)] = devices.allocate(_LINK_SIZE)
    kernel.memory.write_u64(link, supplier)
    kernel.memory.write_u64(link + _LINK_CONSUMER, consumer)
    return link


@kernel_symbol("device_link_remove")
def device_link_remove(kernel: Kernel, consumer: Ptr, supplier: Ptr) -> None:
    """Remove a link by its devices."""
    devices = kernel.part(Devices)
    if devices.links.pop((consumer, supplier), None) is not None:
        found = devices.at(consumer)
        found.suppliers = tuple(one for one in found.suppliers if one != supplier)


@kernel_symbol("device_link_del")
def device_link_del(kernel: Kernel, link: Ptr) -> None:
    """Remove a link."""
    if link:
        memory = kernel.memory
        device_link_remove(kernel, memory.read_u64(link + _LINK_CONSUMER), memory.read_u64(link))
