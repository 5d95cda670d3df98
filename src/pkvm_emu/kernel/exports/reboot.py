"""Reboot and power-off handlers, syscore operations (``kernel/reboot.c``, ``drivers/base/syscore.c``)."""

from __future__ import annotations

from errno import ENOMEM

from pkvm_emu.kernel.guest_access import load_string
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.power_events import MODE_POWER_OFF, MODE_RESTART, PowerEvents, SysOff
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import S32, U32, Ptr

_HANDLER_SIZE = 64


@kernel_symbol("register_sys_off_handler", runs_guest=True)
def register_sys_off_handler(kernel: Kernel, mode: U32, priority: S32, callback: Ptr, data: Ptr) -> int:
    """Have ``callback(struct sys_off_data *)`` called; a handle, or -ENOMEM."""
    handle = kernel.part(Slab).kmalloc(_HANDLER_SIZE)
    if handle is None:
        return -ENOMEM
    kernel.part(PowerEvents).sys_off[handle] = SysOff(mode, priority, callback, data)
    return handle


@kernel_symbol("unregister_sys_off_handler", runs_guest=True)
def unregister_sys_off_handler(kernel: Kernel, handle: Ptr) -> None:
    """Take a handler away; NULL and errors are ignored."""
    if kernel.part(PowerEvents).sys_off.pop(handle, None) is not None:
        kernel.part(Slab).kfree(handle)


def _devm(kernel: Kernel, mode: int, priority: int, callback: int, data: int) -> int:
    handle = register_sys_off_handler(kernel, mode, priority, callback, data)
    return handle if handle < 0 else 0


@kernel_symbol("devm_register_sys_off_handler", runs_guest=True)
def devm_register_sys_off_handler(
    kernel: Kernel, device: Ptr, mode: U32, priority: S32, callback: Ptr, data: Ptr
) -> int:
    """The same for a device: 0 or -ENOMEM."""
    return _devm(kernel, mode, priority, callback, data)


@kernel_symbol("devm_register_power_off_handler", runs_guest=True)
def devm_register_power_off_handler(kernel: Kernel, device: Ptr, callback: Ptr, data: Ptr) -> int:
    """The same for switching off, at the default priority."""
    return _devm(kernel, MODE_POWER_OFF, 0, callback, data)


@kernel_symbol("devm_register_restart_handler", runs_guest=True)
def devm_register_restart_handler(kernel: Kernel, device: Ptr, callback: Ptr, data: Ptr) -> int:
    """The same for restarting."""
    return _devm(kernel, MODE_RESTART, 0, callback, data)


@kernel_variable("pm_power_off", 8)
def pm_power_off(kernel: Kernel) -> bytes:
    """Pointer to the function that switches off: none."""
    return b""


@kernel_variable("reboot_mode", 4)
def reboot_mode(kernel: Kernel) -> bytes:
    """``REBOOT_COLD``."""
    return b""


@kernel_symbol("kernel_restart", "orderly_reboot", "emergency_restart", runs_guest=True)
def kernel_restart(kernel: Kernel, command: Ptr) -> None:
    """Restart the system."""
    text = load_string(kernel, command, 256).decode("latin-1") if command else ""
    kernel.part(PowerEvents).end("restart", text)


@kernel_symbol("kernel_power_off", "orderly_poweroff", runs_guest=True)
def kernel_power_off(kernel: Kernel) -> None:
    """Switch off."""
    kernel.part(PowerEvents).end("poweroff")


@kernel_symbol("kernel_halt", runs_guest=True)
def kernel_halt(kernel: Kernel) -> None:
    """Stop."""
    kernel.part(PowerEvents).end("halt")


@kernel_symbol("register_syscore_ops", runs_guest=True)
def register_syscore_ops(kernel: Kernel, operations: Ptr) -> None:
    """Have functions called when the system suspends, resumes and ends."""
    kernel.part(PowerEvents).syscore.append(operations)


@kernel_symbol("unregister_syscore_ops", runs_guest=True)
def unregister_syscore_ops(kernel: Kernel, operations: Ptr) -> None:
    """No more."""
    found = kernel.part(PowerEvents).syscore
    if operations in found:
        found.remove(operations)
