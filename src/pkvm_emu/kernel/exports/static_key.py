"""Static keys that modules switch (``kernel/jump_label.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.static_keys import count_of, set_count
from pkvm_emu.machine.calling import Ptr


@kernel_symbol(
    "static_key_slow_inc", "static_key_slow_inc_cpuslocked", "static_key_fast_inc_not_disabled", runs_guest=True
)
def static_key_slow_inc(kernel: Kernel, key: Ptr) -> int:
    """One more wants a key on."""
    set_count(kernel, key, count_of(kernel, key) + 1)
    return 1


@kernel_symbol("static_key_slow_dec", "static_key_slow_dec_cpuslocked", runs_guest=True)
def static_key_slow_dec(kernel: Kernel, key: Ptr) -> None:
    """One less; fewer than none warns."""
    count = count_of(kernel, key)
    if not count:
        warn(kernel, "kernel/jump_label.c", "jump label: negative count!")
        return
    set_count(kernel, key, count - 1)


@kernel_symbol("static_key_enable", "static_key_enable_cpuslocked", runs_guest=True)
def static_key_enable(kernel: Kernel, key: Ptr) -> None:
    """Switch a key on that is on or off."""
    set_count(kernel, key, max(count_of(kernel, key), 1))


@kernel_symbol("static_key_disable", "static_key_disable_cpuslocked", runs_guest=True)
def static_key_disable(kernel: Kernel, key: Ptr) -> None:
    """Switch it off."""
    set_count(kernel, key, 0)


@kernel_symbol("static_key_count", runs_guest=True)
def static_key_count(kernel: Kernel, key: Ptr) -> int:
    """How often it was switched on."""
    return count_of(kernel, key)
