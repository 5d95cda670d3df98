"""CPUs and caches (``arch/arm64/mm/cache.S``, ``kernel/smp.c``)."""

from __future__ import annotations

from errno import ENXIO

from pkvm_emu.kernel.guest_access import load_u64
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.smp import Smp
from pkvm_emu.machine.calling import S32, U32, U64, Bool, Ptr

# Caches


@kernel_symbol(
    *("caches_clean_inval_pou", "caches_clean_inval_user_pou", "icache_inval_pou", "__flush_icache_range"),
    *("flush_icache_range", "invalidate_icache_range"),
)
def make_code_visible(kernel: Kernel, start: Ptr, end: Ptr) -> int:
    """Code that was written to a range may run."""
    kernel.machine.core.code_epoch += 1
    if start < end:
        kernel.machine.engine.forget_code(start, end)
    return 0


@kernel_symbol(
    *("dcache_clean_inval_poc", "dcache_clean_poc", "dcache_inval_poc", "dcache_clean_pou", "dcache_clean_pop"),
    *(
        "__flush_dcache_area",
        "__inval_dcache_area",
        "__clean_dcache_area_poc",
        "flush_dcache_page",
        "__flush_dcache_range",
    ),
)
def clean_data_cache(kernel: Kernel, start: Ptr, end: Ptr) -> None:
    """Data caches are coherent with everything here."""


# Other CPUs


@kernel_symbol("smp_call_function_single", runs_guest=True)
def smp_call_function_single(kernel: Kernel, cpu: S32, function: Ptr, info: Ptr, wait: S32) -> int:
    """Run a function on a CPU and wait for it; -ENXIO for one that is not online."""
    return 0 if _call_on(kernel, cpu, function, info) else -ENXIO


@kernel_symbol("smp_call_function", runs_guest=True)
def smp_call_function(kernel: Kernel, function: Ptr, info: Ptr, wait: S32) -> None:
    """Run a function on all other CPUs that are online."""
    for cpu in _others(kernel):
        _call_on(kernel, cpu, function, info)


@kernel_symbol("smp_call_function_many", runs_guest=True)
def smp_call_function_many(kernel: Kernel, mask: Ptr, function: Ptr, info: Ptr, wait: Bool) -> None:
    """Run a function on the other CPUs of a mask."""
    wanted = load_u64(kernel, mask)
    for cpu in _others(kernel):
        if wanted >> cpu & 1:
            _call_on(kernel, cpu, function, info)


@kernel_symbol("on_each_cpu_cond_mask", runs_guest=True)
def on_each_cpu_cond_mask(kernel: Kernel, condition: Ptr, function: Ptr, info: Ptr, wait: Bool, mask: Ptr) -> None:
    """Run a function on the CPUs of a mask for which ``condition(cpu, info)`` holds (NULL: all of them)."""
    wanted = load_u64(kernel, mask)
    for cpu in (*_others(kernel), kernel.machine.current.index):
        if wanted >> cpu & 1 and (not condition or kernel.call(condition, cpu, info) & 1):
            _call_on(kernel, cpu, function, info)


def _others(kernel: Kernel) -> list[int]:
    smp, here = kernel.part(Smp), kernel.machine.current.index
    return [cpu.index for cpu in kernel.machine.cpus if cpu.index != here and smp.is_online(cpu.index)]


def _call_on(kernel: Kernel, cpu: int, function: int, info: int) -> bool:
    """Run ``function(info)`` on a CPU, as an interrupt there would; whether it is online."""
    if cpu == kernel.machine.current.index:
        kernel.call(function, info)
        return True
    return kernel.part(Smp).call_on(cpu, function, info)


@kernel_symbol("smp_call_function_single_async", runs_guest=True)
def smp_call_function_single_async(kernel: Kernel, cpu: S32, csd: Ptr) -> int:
    """Run the function of a ``struct call_single_data`` (func @16, info @24) on a CPU; -ENXIO for one that is not online."""
    return 0 if _call_on(kernel, cpu, load_u64(kernel, csd + 16), load_u64(kernel, csd + 24)) else -ENXIO


@kernel_symbol("smp_call_function_any", runs_guest=True)
def smp_call_function_any(kernel: Kernel, mask: Ptr, function: Ptr, info: Ptr, wait: S32) -> int:
    """Run a function on one CPU of a mask, on this one where it may."""
    wanted, here = load_u64(kernel, mask), kernel.machine.current.index
    for cpu in (here, *_others(kernel)):
        if wanted >> cpu & 1:
            return 0 if _call_on(kernel, cpu, function, info) else -ENXIO
    return -ENXIO


@kernel_symbol("smp_call_on_cpu", "work_on_cpu", runs_guest=True)
def smp_call_on_cpu(kernel: Kernel, cpu: U32, function: Ptr, argument: Ptr) -> int:
    """Run a function on a CPU; what it returned, or -ENXIO for a CPU that is not online."""
    if cpu == kernel.machine.current.index:
        return kernel.call(function, argument)
    if not kernel.part(Smp).is_online(cpu):
        return -ENXIO
    with kernel.machine.on_cpu(cpu):
        kernel.use_own_stack()
        return kernel.call(function, argument)


@kernel_symbol("stop_machine", "stop_machine_cpuslocked", runs_guest=True)
def stop_machine(kernel: Kernel, function: Ptr, data: Ptr, mask: Ptr) -> int:
    """Run a function on one CPU (NULL) or on those of a mask while nobody else runs; what the last that failed returned."""
    wanted, here = (load_u64(kernel, mask) if mask else 1 << kernel.machine.current.index), kernel.machine.current.index
    result = 0
    for cpu in (here, *_others(kernel)):
        if wanted >> cpu & 1:
            answer = kernel.call_s32(function, data) if cpu == here else _answer_on(kernel, cpu, function, data)
            result = answer or result
    return result


def _answer_on(kernel: Kernel, cpu: int, function: int, argument: int) -> int:
    with kernel.machine.on_cpu(cpu):
        kernel.use_own_stack()
        return kernel.call_s32(function, argument)


@kernel_symbol("kick_all_cpus_sync", "cpus_read_lock", "cpus_read_unlock", "migrate_disable", "migrate_enable")
def cpu_set_is_stable(kernel: Kernel) -> None:
    """No CPU comes or goes, and the task stays on its own."""


# Memory map


@kernel_symbol("memblock_is_memory", "memblock_is_map_memory")
def memblock_is_memory(kernel: Kernel, pa: U64) -> int:
    """Whether a physical address is RAM."""
    return pa in kernel.machine.ram
