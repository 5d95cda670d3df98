"""Hypercalls of the module loader: address space, pages, EL2 init, registration, deprivilege.

Source: arch/arm64/kvm/hyp/nvhe/{hyp-main,modules,mm}.c.
"""

from __future__ import annotations

from errno import ENOMEM, EPERM

from pkvm_emu.hyp.event_ids import ID_SIZE, EventIds
from pkvm_emu.hyp.function_trace import MODULE_TRAMPOLINE, FunctionTrace
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.ops.memory import alloc_module_va, map_module_page
from pkvm_emu.hyp.registry import GuestCall, hypercall
from pkvm_emu.machine.calling import U64, Ptr


@hypercall("alloc_module_va")
def host_alloc_module_va(hyp: Hypervisor, pages: U64) -> int:
    """Reserve ``pages`` pages of hyp VA for a module; x1 = the address."""
    return alloc_module_va(hyp, pages)


@hypercall("map_module_page")
def host_map_module_page(hyp: Hypervisor, pfn: U64, va: Ptr, prot: U64) -> int:
    """Donate page ``pfn`` to the hypervisor and map it at ``va`` with ``prot``; x1 = errno."""
    return map_module_page(hyp, pfn, va, prot, False)


@hypercall("unmap_module_page")
def host_unmap_module_page(hyp: Hypervisor, pfn: U64, va: Ptr) -> None:
    """Unmap a module page and give it back to the host; what was not mapped is a hypervisor BUG."""
    hyp.unmap_module_page(pfn, va)


@hypercall("init_module")
def host_init_module(hyp: Hypervisor, module: Ptr) -> GuestCall:
    """Call a module's EL2 init function with ``&pkvm_module_ops``; x1 = what it returned.

    android14 and android15 pass the function's hyp VA, android16 the kernel VA of a copy of ``struct pkvm_el2_module``.
    """
    generation = hyp.generation
    function = module
    if generation.init_module_arg == "struct_copy_kernel_va":
        descriptor = generation.el2_module.read(hyp.read_host(module, generation.el2_module.size))
        init, start, hyp_va = (_word(descriptor[name]) for name in ("init", "sections.start", "hyp_va"))
        function = init - start + hyp_va
        ids, events = _word(descriptor["event_ids.start"]), _word(descriptor["nr_hyp_events"])
        functions, functions_end = (
            _word(descriptor[f"patchable_function_entries.{which}"]) - start + hyp_va for which in ("start", "end")
        )
        if functions != functions_end:
            trampoline = _word(descriptor["text.end"]) - start + hyp_va - MODULE_TRAMPOLINE
            hyp.part(FunctionTrace).add(functions, functions_end, trampoline, start - hyp_va)
        if events:
            # More than 16 modules with events: the hypervisor goes on without theirs.
            hyp.part(EventIds).announce(ids - start + hyp_va, ids - start + hyp_va + events * ID_SIZE)
    return GuestCall(function, hyp.ops.address)


def _word(value: int | bytes) -> int:
    return value if isinstance(value, int) else int.from_bytes(value, "little")


@hypercall("register_hcall")
def host_register_hcall(hyp: Hypervisor, function: Ptr) -> int:
    """Make ``function`` (a hyp VA) a dynamic hypercall; x1 = its id (128 and up) or -ENOMEM when the table is full."""
    generation = hyp.generation
    index = hyp.append("hcall_table", "hcall_count", generation.dyn_hcall_max, function)
    return -ENOMEM if index is None else generation.dyn_hcall_base + index


@hypercall("prot_finalize")
def host_prot_finalize(hyp: Hypervisor) -> int:
    """Deprivilege the host on this CPU; x1 = 0, or -EPERM the second time."""
    if hyp.stage2_enabled:
        return -EPERM
    if not hyp.finalised:
        hyp.ownership.finalise()
        hyp.finalised = True
    hyp.finalise_cpu()
    return 0
