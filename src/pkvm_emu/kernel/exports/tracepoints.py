"""Tracepoints and vendor hooks (``kernel/tracepoint.c``, ``drivers/android/vendor_hooks.c``).

``__tracepoint_NAME`` is made for any name that a module links to, with its iterator ``__traceiter_NAME`` and its static call
``__SCK__tp_func_NAME`` beside it: which hooks a kernel has is up to its vendor.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pkvm_emu.kernel.hooks import DEFAULT_PRIORITY, PREFIX, Hooks, Probe
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import FUNCTIONS, VARIABLES, KernelFunction, KernelVariable, kernel_symbol
from pkvm_emu.machine.calling import S32, U64, Ptr

_ITERATOR, _STATIC_CALL = "__traceiter_", "__SCK__tp_func_"
_STRUCT, _NAME, _SIZE = 80, 80, 192
#: Tracepoints that every kernel has: what ``for_each_kernel_tracepoint`` finds beside those that modules link to.
_CORE = (
    *("console", "contention_begin", "contention_end", "cpu_frequency", "cpu_idle", "cpuhp_enter", "cpuhp_exit"),
    *(
        "device_pm_callback_end",
        "device_pm_callback_start",
        "error_report_end",
        "hrtimer_cancel",
        "hrtimer_expire_entry",
    ),
    *(
        "hrtimer_expire_exit",
        "hrtimer_init",
        "hrtimer_start",
        "ipi_entry",
        "ipi_exit",
        "ipi_raise",
        "irq_handler_entry",
    ),
    *("irq_handler_exit", "kfree", "kmalloc", "kmem_cache_alloc", "kmem_cache_free", "mm_page_alloc", "mm_page_free"),
    *("module_free", "module_get", "module_load", "module_put", "module_request", "oom_score_adj_update"),
    *("rcu_utilization", "rss_stat", "sched_kthread_stop", "sched_kthread_stop_ret", "sched_migrate_task"),
    *("sched_process_exec", "sched_process_exit", "sched_process_fork", "sched_process_free", "sched_process_wait"),
    *("sched_stat_runtime", "sched_switch", "sched_wait_task", "sched_wakeup", "sched_wakeup_new", "sched_waking"),
    *("signal_deliver", "signal_generate", "softirq_entry", "softirq_exit", "softirq_raise", "suspend_resume"),
    *("sys_enter", "sys_exit", "task_newtask", "task_rename", "tick_stop", "timer_cancel", "timer_expire_entry"),
    *("timer_expire_exit", "timer_init", "timer_start", "workqueue_activate_work", "workqueue_execute_end"),
    *("workqueue_execute_start", "workqueue_queue_work"),
)


def declare(symbol: str) -> None:
    """Serve one symbol of the three families."""
    if symbol.startswith(PREFIX):
        VARIABLES[symbol] = KernelVariable(symbol, _SIZE, _tracepoint(symbol.removeprefix(PREFIX)))
    elif symbol.startswith(_STATIC_CALL):
        VARIABLES[symbol] = KernelVariable(symbol, 8, _static_call(symbol.removeprefix(_STATIC_CALL)))
    else:
        FUNCTIONS[symbol] = KernelFunction(symbol, _iterator(symbol.removeprefix(_ITERATOR)), runs_guest=True)


def _tracepoint(name: str) -> Callable[[Kernel], bytes]:
    def initial(kernel: Kernel) -> bytes:
        symbols = kernel.symbols
        place = symbols.addresses[PREFIX + name]
        call, iterator = symbols.resolve(_STATIC_CALL + name), symbols.resolve(_ITERATOR + name)
        words = struct.pack("<QQQQQQ", place + _NAME, 0, 0, call, 0, iterator)
        return words.ljust(_STRUCT, b"\0") + name.encode() + b"\0"

    return initial


def _static_call(name: str) -> Callable[[Kernel], bytes]:
    return lambda kernel: kernel.symbols.resolve(_ITERATOR + name).to_bytes(8, "little")


def _iterator(name: str) -> Callable[..., int]:
    def iterate(kernel: Kernel, data: Ptr, a: U64, b: U64, c: U64, d: U64, e: U64, f: U64, g: U64) -> int:
        """Call all probes of a tracepoint."""
        kernel.part(Hooks).happen(name, a, b, c, d, e, f, g)
        return 0

    return iterate


# Registering


@kernel_symbol("tracepoint_probe_register", runs_guest=True)
def tracepoint_probe_register(kernel: Kernel, tracepoint: Ptr, function: Ptr, data: Ptr) -> int:
    """Register a probe: 0 or an errno."""
    return kernel.part(Hooks).add(tracepoint, Probe(function, data, DEFAULT_PRIORITY))


@kernel_symbol("tracepoint_probe_register_prio", runs_guest=True)
def tracepoint_probe_register_prio(kernel: Kernel, tracepoint: Ptr, function: Ptr, data: Ptr, priority: S32) -> int:
    """The same with a priority: higher ones are called first."""
    return kernel.part(Hooks).add(tracepoint, Probe(function, data, priority))


@kernel_symbol("tracepoint_probe_register_prio_may_exist", runs_guest=True)
def tracepoint_probe_register_prio_may_exist(
    kernel: Kernel, tracepoint: Ptr, function: Ptr, data: Ptr, priority: S32
) -> int:
    """The same; one that is there already does not warn."""
    return kernel.part(Hooks).add(tracepoint, Probe(function, data, priority), may_exist=True)


@kernel_symbol("tracepoint_probe_unregister", runs_guest=True)
def tracepoint_probe_unregister(kernel: Kernel, tracepoint: Ptr, function: Ptr, data: Ptr) -> int:
    """Take a probe away: 0 or -ENOENT."""
    return kernel.part(Hooks).remove(tracepoint, function, data)


@kernel_symbol("android_rvh_probe_register", runs_guest=True)
def android_rvh_probe_register(kernel: Kernel, tracepoint: Ptr, function: Ptr, data: Ptr) -> int:
    """Register a probe of a restricted vendor hook, for ever: 0 or an errno."""
    return kernel.part(Hooks).add(tracepoint, Probe(function, data, 0))


@kernel_symbol("for_each_kernel_tracepoint", runs_guest=True)
def for_each_kernel_tracepoint(kernel: Kernel, function: Ptr, data: Ptr) -> None:
    """Call ``function(tracepoint, data)`` for each tracepoint of the kernel."""
    for name in _CORE:
        kernel.symbols.resolve(PREFIX + name)
    found = [(name, va) for name, va in kernel.symbols.addresses.items() if name.startswith(PREFIX)]
    for _, address in sorted(found):
        kernel.call(function, address, data)


@kernel_symbol("for_each_tracepoint_in_module", runs_guest=True)
def for_each_tracepoint_in_module(kernel: Kernel, module: Ptr, function: Ptr, data: Ptr) -> None:
    """Call ``function(tracepoint, module, data)`` for each tracepoint of a module."""
    own = kernel.loader.find(module)
    for address in kernel.part(Hooks).known().values():
        if own is not None and own.contains(address):
            kernel.call(function, address, module, data)


@kernel_symbol("register_tracepoint_module_notifier", "unregister_tracepoint_module_notifier", runs_guest=True)
def tracepoint_module_notifier(kernel: Kernel, block: Ptr) -> int:
    """Hear of modules with tracepoints that come and go: 0."""
    return 0
