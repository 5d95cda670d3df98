"""Classes and devices of the driver core (``drivers/base/{core,class}.c``)."""

from __future__ import annotations

from pkvm_emu.abi.errno import EINVAL, ENODEV
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.fs.device_model import DeviceModel
from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.fs.sysfs_attributes import (
    attribute_name,
    create_file,
    create_group,
    create_groups,
    remove_file,
    remove_group,
    remove_groups,
)
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U32, CStr, Ptr, VarArgs

# Classes


@kernel_symbol("class_create", runs_guest=True)
def class_create(kernel: Kernel, name: Ptr) -> int:
    """Make a class (6.4 and later); or ERR_PTR(-EEXIST), (-ENOMEM)."""
    return kernel.part(DeviceModel).create_class(text(kernel, name))


@kernel_symbol("__class_create", runs_guest=True)
def class_create_owned(kernel: Kernel, owner: Ptr, name: Ptr, key: Ptr) -> int:
    """The same with its owner (up to 6.3)."""
    return kernel.part(DeviceModel).create_class(text(kernel, name))


@kernel_symbol("class_register", "__class_register", runs_guest=True)
def class_register(kernel: Kernel, cls: Ptr) -> int:
    """Register a class that a driver declares; 0 or -errno."""
    return kernel.part(DeviceModel).register_class(cls)


@kernel_symbol("class_unregister", "class_destroy", runs_guest=True)
def class_destroy(kernel: Kernel, cls: Ptr) -> None:
    """Take a class away; NULL and error pointers are ignored."""
    kernel.part(DeviceModel).unregister_class(cls)


@kernel_symbol("class_create_file_ns", runs_guest=True)
def class_create_file(kernel: Kernel, cls: Ptr, attribute: Ptr, namespace: Ptr) -> int:
    """A file of a class; 0 or -errno."""
    return create_file(kernel, cls, attribute) if cls else -EINVAL


@kernel_symbol("class_remove_file_ns", runs_guest=True)
def class_remove_file(kernel: Kernel, cls: Ptr, attribute: Ptr, namespace: Ptr) -> None:
    """Remove it."""
    remove_file(kernel, cls, attribute_name(kernel, attribute))


# Devices


@kernel_symbol("device_create", runs_guest=True)
def device_create(kernel: Kernel, cls: Ptr, parent: Ptr, number: U32, data: Ptr, fmt: CStr, args: VarArgs) -> int:
    """A device of a class, with its node in /dev where it has a number; or an ERR_PTR."""
    return _create(kernel, cls, parent, number, data, 0, kernel.format(fmt or "", args))


@kernel_symbol("device_create_with_groups", runs_guest=True)
def device_create_with_groups(
    kernel: Kernel, cls: Ptr, parent: Ptr, number: U32, data: Ptr, groups: Ptr, fmt: CStr, args: VarArgs
) -> int:
    """The same with attribute groups."""
    return _create(kernel, cls, parent, number, data, groups, kernel.format(fmt or "", args))


def _create(kernel: Kernel, cls: int, parent: int, number: int, data: int, groups: int, name: str) -> int:
    # An error pointer of class_create() ends here, as in the kernel.
    if not cls or cls >= (1 << 64) - 4095:
        return -ENODEV
    return kernel.part(DeviceModel).create(cls, parent, number, data, groups, name)


@kernel_symbol("device_destroy", runs_guest=True)
def device_destroy(kernel: Kernel, cls: Ptr, number: U32) -> None:
    """Remove the device of a class with a number."""
    model = kernel.part(DeviceModel)
    device = model.find(cls, number)
    if device:
        model.remove(device)
        model.put(device)


@kernel_symbol("device_initialize", runs_guest=True)
def device_initialize(kernel: Kernel, device: Ptr) -> None:
    """Make a ``struct device`` ready."""
    kernel.part(DeviceModel).initialise(device)


@kernel_symbol("device_add", runs_guest=True)
def device_add(kernel: Kernel, device: Ptr) -> int:
    """Put it into sysfs and /dev; 0 or -errno."""
    return kernel.part(DeviceModel).add(device)


@kernel_symbol("device_register", runs_guest=True)
def device_register(kernel: Kernel, device: Ptr) -> int:
    """Both; 0 or -errno."""
    device_initialize(kernel, device)
    return device_add(kernel, device)


@kernel_symbol("device_del", runs_guest=True)
def device_del(kernel: Kernel, device: Ptr) -> None:
    """Take it out of sysfs and /dev."""
    kernel.part(DeviceModel).remove(device)


@kernel_symbol("device_unregister", runs_guest=True)
def device_unregister(kernel: Kernel, device: Ptr) -> None:
    """The same, and drop the reference."""
    device_del(kernel, device)
    put_device(kernel, device)


@kernel_symbol("get_device", runs_guest=True)
def get_device(kernel: Kernel, device: Ptr) -> int:
    """One more reference."""
    return kernel.part(DeviceModel).get(device)


@kernel_symbol("put_device", runs_guest=True)
def put_device(kernel: Kernel, device: Ptr) -> None:
    """One less; the last one calls the device's ``release``. Those of the device tree stay."""
    found = kernel.part(Devices).by_address.get(device)
    if found is None or not found.platform:
        kernel.part(DeviceModel).put(device)


# Attributes


@kernel_symbol("device_create_file", "driver_create_file", runs_guest=True)
def device_create_file(kernel: Kernel, device: Ptr, attribute: Ptr) -> int:
    """A file of a device or a driver; 0, -EEXIST, -EINVAL (it is not in sysfs)."""
    return create_file(kernel, _driver_object(kernel, device), attribute) if device else 0


@kernel_symbol("device_remove_file", "driver_remove_file", runs_guest=True)
def device_remove_file(kernel: Kernel, device: Ptr, attribute: Ptr) -> None:
    """Remove it; NULL is ignored."""
    if device:
        remove_file(kernel, _driver_object(kernel, device), attribute_name(kernel, attribute))


def _driver_object(kernel: Kernel, address: int) -> int:
    """A device as it is; a ``struct device_driver`` gets its directory when its first file is made."""
    from pkvm_emu.kernel.devicetree.drivers import PlatformBus

    for driver in kernel.part(PlatformBus).drivers.values():
        if driver.address + driver.structure.driver == address and address not in kernel.part(Kobjects).paths:
            kernel.part(Kobjects).place(address, f"/sys/bus/platform/drivers/{driver.name}", "driver")
    return address


@kernel_symbol("device_create_bin_file", runs_guest=True)
def device_create_bin_file(kernel: Kernel, device: Ptr, attribute: Ptr) -> int:
    """A binary file of a device; 0 or -errno."""
    return create_file(kernel, device, attribute, binary=True) if device else -EINVAL


@kernel_symbol("device_remove_bin_file", runs_guest=True)
def device_remove_bin_file(kernel: Kernel, device: Ptr, attribute: Ptr) -> None:
    """Remove it."""
    if device:
        remove_file(kernel, device, attribute_name(kernel, attribute))


@kernel_symbol("device_add_groups", "devm_device_add_groups", runs_guest=True)
def device_add_groups(kernel: Kernel, device: Ptr, groups: Ptr) -> int:
    """All groups of an array; 0 or -errno."""
    return create_groups(kernel, device, groups)


@kernel_symbol("device_add_group", "devm_device_add_group", runs_guest=True)
def device_add_group(kernel: Kernel, device: Ptr, group: Ptr) -> int:
    """One group; 0 or -errno."""
    return create_group(kernel, device, group)


@kernel_symbol("device_remove_groups", runs_guest=True)
def device_remove_groups(kernel: Kernel, device: Ptr, groups: Ptr) -> None:
    """Remove the groups of an array."""
    remove_groups(kernel, device, groups)


@kernel_symbol("device_remove_group", runs_guest=True)
def device_remove_group(kernel: Kernel, device: Ptr, group: Ptr) -> None:
    """Remove one group."""
    remove_group(kernel, device, group)
