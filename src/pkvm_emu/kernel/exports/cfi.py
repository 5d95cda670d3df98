"""Indirect calls across modules in 5.15 (``kernel/cfi.c``): the callee's module says whether it has such a function."""

from __future__ import annotations

from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.guest_access import caller
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U64, Ptr

_BRK_CFI = 0x3C << 26 | 1 << 25


@kernel_symbol("__cfi_slowpath_diag", "__cfi_slowpath", runs_guest=True)
def cfi_slowpath(kernel: Kernel, identity: U64, target: Ptr, diagnostic: Ptr) -> None:
    """Check a pointer that is not one of the calling module: by the ``__cfi_check`` of the module that has it.

    Raises:
        KernelOops: there is no function at the target, so that a device stops here.
    """
    module = kernel.loader.find(target)
    if module is not None:
        check = module.symbol("__cfi_check")
        if check is not None:
            kernel.call(check, identity, target, diagnostic)
        return
    if target in kernel.symbols.addresses.values():
        return
    text = f"CFI failure (target: {kernel.describe(target)})"
    kernel.log.write(f"Kernel panic - not syncing: {text}", level=0)
    raise KernelOops(f"{text}, called from {caller(kernel)}", _BRK_CFI, 0, kernel.machine.engine.read("pc"))
