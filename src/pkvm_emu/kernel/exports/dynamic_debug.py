"""Debug messages that can be switched (``lib/dynamic_debug.c``): what reaches these functions was switched on."""

from __future__ import annotations

from pkvm_emu.kernel.exports.device_log import device_log
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import CStr, Ptr, VarArgs

_DEBUG = 7


@kernel_symbol("__dynamic_pr_debug")
def dynamic_pr_debug(kernel: Kernel, descriptor: Ptr, fmt: CStr, args: VarArgs) -> None:
    """A message of level 7."""
    kernel.log.printk(f"\x01{_DEBUG}{kernel.format(fmt or '', args)}")


@kernel_symbol("__dynamic_dev_dbg")
def dynamic_dev_dbg(kernel: Kernel, descriptor: Ptr, device: Ptr, fmt: CStr, args: VarArgs) -> None:
    """The same with driver and device in front."""
    device_log(kernel, device, _DEBUG, kernel.format(fmt or "", args))
