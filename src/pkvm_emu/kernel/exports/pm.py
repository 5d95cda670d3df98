"""Runtime power management (``drivers/base/power/runtime.c``): usage counts, and the driver's callbacks in the guest.

Requests for later are carried out at once: nothing else runs between a request and its work.
"""

from __future__ import annotations

from typing import Literal

from pkvm_emu.kernel.devicetree import devres
from pkvm_emu.kernel.devicetree.devices import Device, Devices
from pkvm_emu.kernel.devicetree.drivers import PlatformBus
from pkvm_emu.kernel.devicetree.pm_ops import runtime_callbacks
from pkvm_emu.kernel.exports.device_log import device_log
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, U32, Bool, Ptr

EACCES, EAGAIN, EINVAL, EINPROGRESS = 13, 11, 22, 115
GET_PUT = 4
_RPM_ACTIVE, _RPM_SUSPENDED = 0, 2
#: ``driver.pm`` in ``struct device_driver``.
_DRIVER_PM = 120


def _device(kernel: Kernel, address: int) -> Device:
    return kernel.part(Devices).at(address)


def _callback(kernel: Kernel, device: Device, which: Literal["suspend", "resume", "idle"]) -> int | None:
    """Call a runtime callback of the device's driver; None where it has none."""
    driver = kernel.part(PlatformBus).drivers.get(device.driver)
    if driver is None:
        return None
    operations = kernel.memory.read_u64(driver.address + driver.structure.driver + _DRIVER_PM)
    function = getattr(runtime_callbacks(kernel, operations), which) if operations else 0
    return kernel.call_s32(function, device.address) if function else None


def _suspend(kernel: Kernel, device: Device) -> int:
    if device.disable_depth:
        return -EACCES
    if device.usage > 0:
        return -EAGAIN
    if device.status == "suspended":
        return 1
    if device.status != "active":
        return -EINPROGRESS
    return _change(kernel, device, "suspend")


def _change(kernel: Kernel, device: Device, which: Literal["suspend", "resume"]) -> int:
    """Call the callback. While it runs the device is neither active nor suspended, which an interrupt handler may ask for."""
    before = device.status
    device.status = "suspending" if which == "suspend" else "resuming"
    result = _callback(kernel, device, which) or 0
    device.status = before if result else "suspended" if which == "suspend" else "active"
    return result


def _drop(kernel: Kernel, device: Device) -> int | None:
    """Give a use back; the result where that was all there is to do."""
    if device.usage == 0:
        device_log(kernel, device.address, 4, "Runtime PM usage count underflow!\n")
        return -EINVAL
    device.usage -= 1
    return 0 if device.usage else None


@kernel_symbol("pm_runtime_enable")
def pm_runtime_enable(kernel: Kernel, device: Ptr) -> None:
    """Undo one disable (a new device is disabled once)."""
    found = _device(kernel, device)
    if not found.disable_depth:
        device_log(kernel, device, 4, "Unbalanced pm_runtime_enable!\n")
    else:
        found.disable_depth -= 1


@kernel_symbol("devm_pm_runtime_enable")
def devm_pm_runtime_enable(kernel: Kernel, device: Ptr) -> int:
    """The same for as long as the driver is bound."""
    pm_runtime_enable(kernel, device)
    devres.add(_device(kernel, device), "runtime-pm", 0)
    return 0


@kernel_symbol("__pm_runtime_disable")
def pm_runtime_disable(kernel: Kernel, device: Ptr, check_resume: Bool) -> None:
    """Switch runtime PM off; nests."""
    _device(kernel, device).disable_depth += 1


@kernel_symbol("__pm_runtime_resume", runs_guest=True)
def pm_runtime_resume(kernel: Kernel, device: Ptr, flags: S32) -> int:
    """Make a device active: 0, 1 if it is already, -EACCES while runtime PM is off, or what the callback returned.

    -EINPROGRESS where a callback of the device is what runs (without RPM_NOWAIT or RPM_ASYNC a kernel waits for it).
    """
    found = _device(kernel, device)
    if flags & GET_PUT:
        found.usage += 1
    if found.disable_depth:
        return 1 if found.disable_depth == 1 and found.status == "active" else -EACCES
    if found.status == "active":
        return 1
    return _change(kernel, found, "resume") if found.status == "suspended" else -EINPROGRESS


@kernel_symbol("__pm_runtime_suspend", runs_guest=True)
def pm_runtime_suspend(kernel: Kernel, device: Ptr, flags: S32) -> int:
    """Suspend a device that nobody uses: 0, 1 if it is already, -EAGAIN while in use, -EACCES while runtime PM is off."""
    found = _device(kernel, device)
    if flags & GET_PUT and (done := _drop(kernel, found)) is not None:
        return done
    return _suspend(kernel, found)


@kernel_symbol("__pm_runtime_idle", runs_guest=True)
def pm_runtime_idle(kernel: Kernel, device: Ptr, flags: S32) -> int:
    """Tell that a device may be idle: its idle callback may refuse, else it is suspended."""
    found = _device(kernel, device)
    if flags & GET_PUT and (done := _drop(kernel, found)) is not None:
        return done
    if found.disable_depth:
        return -EACCES
    if found.usage > 0 or found.status != "active":
        return -EAGAIN
    refused = _callback(kernel, found, "idle")
    return refused if refused else _suspend(kernel, found)


@kernel_symbol("pm_runtime_force_suspend", runs_guest=True)
def pm_runtime_force_suspend(kernel: Kernel, device: Ptr) -> int:
    """Suspend a device whoever uses it, and switch runtime PM off; 0 or what the callback returned, and then it stays on."""
    found = _device(kernel, device)
    found.disable_depth += 1
    if found.status == "suspended":
        return 0
    result = _change(kernel, found, "suspend")
    if result:
        found.disable_depth -= 1
    return result


@kernel_symbol("pm_runtime_force_resume", runs_guest=True)
def pm_runtime_force_resume(kernel: Kernel, device: Ptr) -> int:
    """Undo it: wake the device if somebody uses it, and switch runtime PM on again; 0 or what the callback returned."""
    found = _device(kernel, device)
    result = 0
    if found.usage and found.status == "suspended":
        result = _change(kernel, found, "resume")
    found.disable_depth = max(found.disable_depth - 1, 0)
    return result


@kernel_symbol("pm_runtime_get_if_active")
def pm_runtime_get_if_active(kernel: Kernel, device: Ptr) -> int:
    """Use a device only if it is active: 1, 0, or -EINVAL while runtime PM is off."""
    found = _device(kernel, device)
    if found.disable_depth:
        return -EINVAL
    if found.status != "active":
        return 0
    found.usage += 1
    return 1


@kernel_symbol("pm_runtime_get_if_in_use")
def pm_runtime_get_if_in_use(kernel: Kernel, device: Ptr) -> int:
    """Use a device only if it is active and used already."""
    found = _device(kernel, device)
    return pm_runtime_get_if_active(kernel, device) if found.usage or found.disable_depth else 0


@kernel_symbol("__pm_runtime_set_status")
def pm_runtime_set_status(kernel: Kernel, device: Ptr, status: U32) -> int:
    """Say what state a device is in, while runtime PM is off: 0, -EAGAIN, -EINVAL."""
    found = _device(kernel, device)
    if status not in (_RPM_ACTIVE, _RPM_SUSPENDED):
        return -EINVAL
    if not found.disable_depth:
        return -EAGAIN
    found.status = "active" if status == _RPM_ACTIVE else "suspended"
    return 0


@kernel_symbol("pm_runtime_barrier")
def pm_runtime_barrier(kernel: Kernel, device: Ptr) -> int:
    """Wait for requests: none is ever pending."""
    return 0


@kernel_symbol(
    "pm_runtime_irq_safe", "pm_runtime_no_callbacks", "pm_suspend_ignore_children", "pm_runtime_set_autosuspend_delay",
    "__pm_runtime_use_autosuspend",
)  # fmt: skip
def pm_runtime_option(kernel: Kernel, device: Ptr, value: U32) -> None:
    """Options that change when work is done, which is at once here."""


@kernel_symbol("pm_runtime_forbid", runs_guest=True)
def pm_runtime_forbid(kernel: Kernel, device: Ptr) -> None:
    """Keep a device active."""
    pm_runtime_resume(kernel, device, GET_PUT)


@kernel_symbol("pm_runtime_allow", runs_guest=True)
def pm_runtime_allow(kernel: Kernel, device: Ptr) -> None:
    """Undo ``pm_runtime_forbid``."""
    pm_runtime_idle(kernel, device, GET_PUT)
