"""References to modules and symbols (``kernel/module/main.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load_string, misuse
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.modules import LoadedModule
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr


def _module(kernel: Kernel, address: int, name: str) -> LoadedModule | None:
    """The module behind a ``struct module *``; None for NULL, which stands for the kernel itself."""
    if not address:
        return None
    module = kernel.loader.find(address)
    if module is None:
        raise misuse(kernel, f"{name}({address:#x}): that is no module")
    return module


@kernel_symbol("try_module_get")
def try_module_get(kernel: Kernel, module: Ptr) -> int:
    """Pin a module; true but for one that is going away. NULL is the kernel, which always stays."""
    found = _module(kernel, module, "try_module_get")
    if found is not None:
        if found.status not in ("coming", "live"):
            return False
        found.references += 1
    return True


@kernel_symbol("__module_get")
def module_get(kernel: Kernel, module: Ptr) -> None:
    """Pin a module that is known to stay."""
    found = _module(kernel, module, "__module_get")
    if found is not None:
        found.references += 1


@kernel_symbol("module_put")
def module_put(kernel: Kernel, module: Ptr) -> None:
    """Release a pin; one too many warns."""
    found = _module(kernel, module, "module_put")
    if found is None:
        return
    if not found.references:
        warn(kernel, "kernel/module/main.c module_put")
        return
    found.references -= 1


@kernel_symbol("module_refcount")
def module_refcount(kernel: Kernel, module: Ptr) -> int:
    """Number of pins."""
    found = _module(kernel, module, "module_refcount")
    return found.references if found is not None else -1


@kernel_symbol("__symbol_get", runs_guest=True)
def symbol_get(kernel: Kernel, name: Ptr) -> int:
    """Address of an exported symbol (and a pin on its module), or NULL."""
    wanted = load_string(kernel, name).decode("latin-1")
    module = _exporter(kernel, wanted)
    if module is not None:
        module.references += 1
        return module.symbol(wanted) or 0
    return kernel.symbols.resolve(wanted) if kernel.symbols.serves(wanted) else 0


@kernel_symbol("__symbol_put", runs_guest=True)
def symbol_put(kernel: Kernel, name: Ptr) -> None:
    """Release what ``__symbol_get`` pinned."""
    module = _exporter(kernel, load_string(kernel, name).decode("latin-1"))
    if module is not None and module.references:
        module.references -= 1


@kernel_symbol("symbol_put_addr")
def symbol_put_addr(kernel: Kernel, address: Ptr) -> None:
    """The same by address."""
    module = kernel.loader.find(address)
    if module is not None and module.references:
        module.references -= 1


@kernel_symbol("__request_module", runs_guest=True)
def request_module(kernel: Kernel, wait: Ptr, fmt: Ptr) -> int:
    """User space that could load a module does not run yet: 256, as a failing modprobe gives."""
    return 256


def _exporter(kernel: Kernel, name: str) -> LoadedModule | None:
    for module in kernel.loader.modules.values():
        if any(export.name == name for export in module.file.exports):
            return module
    return None
