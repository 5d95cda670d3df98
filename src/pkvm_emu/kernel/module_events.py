"""Who hears that a module comes and goes: module notifiers and tracepoints of the kernel. Source: kernel/module/main.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule

#: ``enum module_state``.
LIVE, COMING, GOING = 0, 1, 2


def announce_module(kernel: Kernel, module: LoadedModule, state: int) -> None:
    """Tell those who asked that a module has come to a state; nothing happens where nobody did.

    Args:
        kernel: the kernel.
        module: the module.
        state: :data:`COMING` before its init function, :data:`LIVE` after it, :data:`GOING` after its exit function.
    """
    structure = module.symbol("__this_module") or 0
    hooks = kernel.part_made("Hooks")
    if hooks is not None and state != LIVE:
        hooks.happen("module_load" if state == COMING else "module_free", structure)
    if "module_notify_list" in kernel.symbols.addresses:
        from pkvm_emu.kernel.exports.notifiers import call_kernel_chain

        call_kernel_chain(kernel, "module", state, structure)
