"""``dev_err`` and its kin: the log lines of devices, with driver and device in front (``drivers/base/core.c``)."""

from __future__ import annotations

from pkvm_emu.abi.errno import errno_name
from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, CStr, Ptr, VarArgs

EPROBE_DEFER, ENOMEM = 517, 12
_EMERGENCY, _ALERT, _CRITICAL, _ERROR, _WARNING, _NOTICE, _INFO = range(7)
#: The first line that says nothing about -ENOMEM.
_QUIET_ABOUT_MEMORY = (6, 12)


def device_log(kernel: Kernel, device: int, level: int, text: str) -> None:
    """Log a line of a device: ``driver device: text``."""
    kernel.log.printk(f"\x01{level}{prefix(kernel, device)}{text}")


def prefix(kernel: Kernel, device: int) -> str:
    """What stands before a device's message."""
    if not device:
        return "(NULL device *): "
    found = kernel.part(Devices).at(device)
    driver = found.driver_name or ("platform" if found.platform else "")
    return f"{driver} {found.name}: "


def _print(kernel: Kernel, device: int, level: int, fmt: str | None, args: object) -> None:
    device_log(kernel, device, level, kernel.format(fmt or "(null)", args))


@kernel_symbol("_dev_emerg")
def dev_emerg(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 0."""
    _print(kernel, device, _EMERGENCY, fmt, args)


@kernel_symbol("_dev_alert")
def dev_alert(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 1."""
    _print(kernel, device, _ALERT, fmt, args)


@kernel_symbol("_dev_crit")
def dev_crit(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 2."""
    _print(kernel, device, _CRITICAL, fmt, args)


@kernel_symbol("_dev_err")
def dev_err(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 3."""
    _print(kernel, device, _ERROR, fmt, args)


@kernel_symbol("_dev_warn")
def dev_warn(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 4."""
    _print(kernel, device, _WARNING, fmt, args)


@kernel_symbol("_dev_notice")
def dev_notice(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 5."""
    _print(kernel, device, _NOTICE, fmt, args)


@kernel_symbol("_dev_info")
def dev_info(kernel: Kernel, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """Level 6."""
    _print(kernel, device, _INFO, fmt, args)


@kernel_symbol("_dev_printk", "dev_printk")
def dev_printk(kernel: Kernel, level: CStr, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """A level as ``KERN_*`` text: the byte 1 and a digit."""
    digit = level[1] if level and len(level) > 1 else ""
    _print(kernel, device, int(digit) if digit.isdigit() else _WARNING, fmt, args)


@kernel_symbol("dev_printk_emit")
def dev_printk_emit(kernel: Kernel, level: S32, device: Ptr, fmt: CStr, args: VarArgs) -> int:
    """The message as it is, without driver and device."""
    return kernel.log.printk(f"\x01{level & 7}{kernel.format(fmt or '', args)}")


@kernel_symbol("dev_err_probe")
def dev_err_probe(kernel: Kernel, device: Ptr, error: S32, fmt: CStr, args: VarArgs) -> int:
    """An error of a probe function, named; nothing for -EPROBE_DEFER (and from 6.12 for -ENOMEM). Returns the error."""
    return report(kernel, device, error, kernel.format(fmt or "", args), _ERROR)


@kernel_symbol("dev_warn_probe")
def dev_warn_probe(kernel: Kernel, device: Ptr, error: S32, fmt: CStr, args: VarArgs) -> int:
    """The same as a warning."""
    return report(kernel, device, error, kernel.format(fmt or "", args), _WARNING)


def report(kernel: Kernel, device: int, error: int, text: str, level: int = _ERROR) -> int:
    """``dev_err_probe`` with text that is formatted already."""
    quiet = error == -ENOMEM and kernel.generation.kernel >= _QUIET_ABOUT_MEMORY
    if error != -EPROBE_DEFER and not quiet:
        device_log(kernel, device, level, f"error {errno_name(error)}: {text}")
    return error
