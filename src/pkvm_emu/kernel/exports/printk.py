"""printk, panic and what the compiler calls when something is wrong."""

from __future__ import annotations

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr, VarArgs


class KernelPanic(ModuleError):
    """The kernel panicked."""


@kernel_symbol("_printk", "printk", "_printk_deferred")
def printk(kernel: Kernel, fmt: Ptr, args: VarArgs) -> int:
    """Format and log; returns the number of characters."""
    return kernel.log.printk(kernel.format(kernel.read_cstr(fmt), args))


@kernel_symbol("__stack_chk_fail")
def stack_chk_fail(kernel: Kernel) -> None:
    """The stack canary of an EL1 function is damaged: the kernel panics."""
    caller = kernel.describe(kernel.machine.engine.read("x30") - 4)
    text = f"stack-protector: Kernel stack is corrupted in: {caller}"
    kernel.log.write(f"Kernel panic - not syncing: {text}", level=0)
    raise KernelPanic(f"Kernel panic - not syncing: {text}")


def tell_panic(kernel: Kernel, text: str) -> None:
    """Call the panic notifiers, where a module linked to their list; each gets the message."""
    if "panic_notifier_list" in kernel.symbols.addresses:
        from pkvm_emu.kernel.exports.notifiers import call_kernel_chain

        call_kernel_chain(kernel, "panic", 0, kernel.scratch_string(text))


@kernel_symbol("panic", runs_guest=True)
def panic(kernel: Kernel, fmt: Ptr, args: VarArgs) -> None:
    """Stop the kernel with a message, after the panic notifiers."""
    text = kernel.format(kernel.read_cstr(fmt), args).rstrip("\n")
    kernel.log.write(f"Kernel panic - not syncing: {text}", level=0)
    tell_panic(kernel, text)
    raise KernelPanic(f"Kernel panic - not syncing: {text}")


@kernel_symbol("alt_cb_patch_nops")
def alt_cb_patch_nops(kernel: Kernel) -> None:
    """Patching callback of alternatives: it runs in the loader, and nothing calls it."""
    raise ModuleError("alt_cb_patch_nops is for the kernel's patching code, not to be called")
