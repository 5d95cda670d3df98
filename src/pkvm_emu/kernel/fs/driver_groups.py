"""Attribute groups that a driver declares, for itself and for the devices bound to it (``drivers/base/{driver,dd}.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.fs.sysfs_attributes import create_groups, remove_groups

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel


def add_driver_groups(kernel: Kernel, driver: int, name: str, groups: int) -> int:
    """The files of a driver in ``/sys/bus/platform/drivers/NAME``; 0 or -errno.

    Args:
        kernel: the kernel.
        driver: kernel VA of the ``struct device_driver``.
        name: its name.
        groups: its array of groups.
    """
    kernel.part(Kobjects).place(driver, f"/sys/bus/platform/drivers/{name}", "driver")
    return create_groups(kernel, driver, groups)


def remove_driver(kernel: Kernel, driver: int) -> None:
    """The directory of a driver goes."""
    kernel.part(Kobjects).displace(driver)


def add_device_groups(kernel: Kernel, device: int, groups: int) -> int:
    """The files that a driver gives to a device that it was bound to; 0 or -errno."""
    return create_groups(kernel, device, groups)


def remove_device_groups(kernel: Kernel, device: int, groups: int) -> None:
    """They go with the binding."""
    remove_groups(kernel, device, groups)
