"""Unloading an ordinary module (``delete_module``): its exit function runs, then its memory goes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel import layout
from pkvm_emu.kernel.module_events import GOING, announce_module

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel
    from pkvm_emu.kernel.modules import LoadedModule


def unload_module(kernel: Kernel, module: LoadedModule) -> None:
    """Run the module's exit function and take the module out of the kernel.

    Whether it may go is for the caller to know: a module with a loaded EL2 half, with users, or with an init function and
    no exit function stays (-EBUSY or -EWOULDBLOCK in ``kernel/module/main.c``).
    """
    leave = module.symbol("cleanup_module")
    if leave is not None:
        kernel.call(leave)
    announce_module(kernel, module, GOING)
    module.status = "gone"
    del kernel.loader.modules[module.name]
    kernel.loader.drop_uses(module)
    for va, (pa, order) in list(module.blocks.items()):
        kernel.memory.unmap(va, layout.PAGE_SIZE << order)
        kernel.pages.free_pages(pa, order)
        del module.blocks[va]
    # What ran there may be translated still.
    kernel.machine.core.code_epoch += 1
    kernel.machine.engine.flush_code()
    kernel.machine.engine.flush_tlb()
