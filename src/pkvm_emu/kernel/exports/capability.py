"""Rights of the current task (``kernel/capability.c``): it is root."""

from __future__ import annotations

from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, Ptr


@kernel_symbol("capable")
def capable(kernel: Kernel, capability: S32) -> int:
    """Root may everything."""
    return 1


@kernel_symbol("ns_capable", "file_ns_capable")
def ns_capable(kernel: Kernel, namespace: Ptr, capability: S32) -> int:
    """The same in a namespace."""
    return 1
