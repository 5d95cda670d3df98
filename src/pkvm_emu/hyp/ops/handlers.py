"""Registration of handlers and notifiers: the ops write tables in EL2 memory, the firmware walks them.

Registration compares and swaps from NULL, so a second one of a single slot is -EBUSY and nothing is ever taken back. The
chains do not look for duplicates. Source: arch/arm64/kvm/hyp/nvhe/modules.c and the files it calls.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL

from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import Ptr


def _take_slot(hyp: Hypervisor, label: str, function: int) -> int:
    if hyp.read_word(label):
        return -EBUSY
    hyp.write_word(label, function)
    return 0


def _append(hyp: Hypervisor, table: str, count: str, capacity: int, function: int) -> int:
    return -EBUSY if hyp.append(table, count, capacity, function) is None else 0


@op("register_host_smc_handler")
def register_host_smc_handler(hyp: Hypervisor, handler: Ptr) -> int:
    """Ask ``handler`` about SMCs of the host that are not PSCI or FF-A.

    android14 and android15 have one slot, android16 sixteen, asked in the order of registration until one returns true.
    Returns 0 or -EBUSY.
    """
    return _append(hyp, "smc_table", "smc_count", hyp.generation.smc_handler_slots, handler)


@op("register_host_perm_fault_handler")
def register_host_perm_fault_handler(hyp: Hypervisor, handler: Ptr) -> int:
    """Ask ``handler(regs, esr, addr)`` about stage-2 permission faults of the host.

    android14: one slot. android15: sixteen, the first non-zero answer counts. android16: sixteen, the first 0 ends the walk.
    Returns 0 or -EBUSY.
    """
    return _append(hyp, "perm_table", "perm_count", hyp.generation.perm_fault_handler_slots, handler)


@op("register_default_trap_handler")
def register_default_trap_handler(hyp: Hypervisor, handler: Ptr) -> int:
    """Ask ``handler(regs)`` about traps that the hypervisor itself does not know; 0 or -EBUSY."""
    return _take_slot(hyp, "default_trap_fn", handler)


@op("register_illegal_abt_notifier")
def register_illegal_abt_notifier(hyp: Hypervisor, notifier: Ptr) -> int:
    """Tell ``notifier(regs)`` before an abort is injected into the host; 0 or -EBUSY."""
    return _take_slot(hyp, "abort_notifier_fn", notifier)


@op("register_hyp_panic_notifier")
def register_hyp_panic_notifier(hyp: Hypervisor, notifier: Ptr) -> int:
    """Tell ``notifier(regs)`` when the hypervisor panics; 0 or -EBUSY."""
    return _take_slot(hyp, "panic_notifier_fn", notifier)


@op("register_psci_notifier")
def register_psci_notifier(hyp: Hypervisor, notifier: Ptr) -> int:
    """Tell ``notifier(event, regs)`` about CPU suspend, system suspend and CPU entry; 0 or -EBUSY."""
    return _take_slot(hyp, "psci_notifier_fn", notifier)


@op("register_unmask_serror")
def register_unmask_serror(hyp: Hypervisor, unmask: Ptr, mask: Ptr) -> int:
    """Call ``unmask`` on each entry from the host and ``mask`` on each exit; 0, -EINVAL for NULL, or -EBUSY."""
    if not unmask or not mask:
        return -EINVAL
    result = _take_slot(hyp, "unmask_serror_fn", unmask)
    if result == 0:
        hyp.write_word("mask_serror_fn", mask)
    return result
