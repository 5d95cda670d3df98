"""Searches in CPU masks (``lib/cpumask.c``); functions up to 5.15, inline later."""

from __future__ import annotations

from pkvm_emu.kernel.guest_access import load_u64
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, U32, Bool, Ptr

#: ``NR_CPUS`` of GKI kernels.
_MASK_BITS = 32


def _members(kernel: Kernel, mask: int) -> list[int]:
    bits = load_u64(kernel, mask)
    return [cpu for cpu in range(_MASK_BITS) if bits >> cpu & 1]


def _limit(kernel: Kernel) -> int:
    return kernel.machine.profile.cpus


@kernel_symbol("cpumask_next", runs_guest=True)
def cpumask_next(kernel: Kernel, after: S32, mask: Ptr) -> int:
    """The next CPU behind ``after``; ``nr_cpu_ids`` without."""
    return next((cpu for cpu in _members(kernel, mask) if cpu > after), _limit(kernel))


@kernel_symbol("cpumask_next_and", runs_guest=True)
def cpumask_next_and(kernel: Kernel, after: S32, first: Ptr, second: Ptr) -> int:
    """The same of the CPUs that are in both masks."""
    both = set(_members(kernel, first)) & set(_members(kernel, second))
    return min((cpu for cpu in both if cpu > after), default=_limit(kernel))


@kernel_symbol("cpumask_any_but", runs_guest=True)
def cpumask_any_but(kernel: Kernel, mask: Ptr, but: U32) -> int:
    """Some CPU that is not ``but``."""
    return next((cpu for cpu in _members(kernel, mask) if cpu != but), _limit(kernel))


@kernel_symbol("cpumask_next_wrap", runs_guest=True)
def cpumask_next_wrap(kernel: Kernel, after: S32, mask: Ptr, start: S32, wrap: Bool) -> int:
    """The next one, going round once to before ``start``."""
    members = _members(kernel, mask)
    if wrap:
        return next((cpu for cpu in members if after < cpu < start), _limit(kernel))
    behind = [cpu for cpu in members if cpu > after]
    return behind[0] if behind else next((cpu for cpu in members if cpu < start), _limit(kernel))
