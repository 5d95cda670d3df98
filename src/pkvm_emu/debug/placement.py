"""Where the EL2 half of a module is, or will be.

A module that is being initialised has not loaded its EL2 half yet, but breakpoints in it are wanted right then. The hypervisor's
private range only grows, so the half is going to lie where that range ends now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.kernel.modules import LoadedModule
    from pkvm_emu.system import System


def hyp_delta(system: System, module: LoadedModule) -> int | None:
    """EL2 address minus EL1 address of a module's EL2 half, foreseen where it is not loaded; None where none will be."""
    if module.token:
        return module.hyp_delta
    if module.layout.hyp_size and module.status == "coming":
        return system.hyp.private_cursor - module.layout.hyp_base
    return None


def foreseen(system: System, va: int) -> int | None:
    """The EL1 address of what will be at hyp VA ``va`` (or is, while its pages are being mapped); None where nothing will."""
    for module in system.kernel.loader.modules.values():
        delta = hyp_delta(system, module)
        if delta is not None and 0 <= va - delta - module.layout.hyp_base < module.layout.hyp_size:
            return va - delta
    return None
