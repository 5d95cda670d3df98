"""What modules have registered at EL2, read from the firmware's tables."""

from __future__ import annotations

from typing import NamedTuple

from pkvm_emu.hyp.hypervisor import Hypervisor

#: Kind, table, count: the chains. Kind, slot: the single ones.
_CHAINS = (
    ("host SMC handler", "smc_table", "smc_count"),
    ("host permission-fault handler", "perm_table", "perm_count"),
    ("guest SMC handler", "guest_smc_table", "guest_smc_count"),
)
_SLOTS = (
    ("serial driver", "serial_putc_fn"),
    ("default trap handler", "default_trap_fn"),
    ("illegal-abort notifier", "abort_notifier_fn"),
    ("PSCI notifier", "psci_notifier_fn"),
    ("hyp-panic notifier", "panic_notifier_fn"),
    ("SError unmask hook", "unmask_serror_fn"),
    ("SError mask hook", "mask_serror_fn"),
)


class Registration(NamedTuple):
    """One registered function: what it is for, and its hyp VA."""

    kind: str
    address: int


def registrations(hyp: Hypervisor) -> list[Registration]:
    """Every handler, notifier and driver, chains in the order in which they are asked."""
    found = []
    ram = hyp.machine.ram
    for kind, table, count in _CHAINS:
        base = hyp.data_pa(table)
        found += [Registration(kind, ram.read_u64(base + 8 * index)) for index in range(hyp.read_word(count))]
    found += [Registration(kind, hyp.read_word(slot)) for kind, slot in _SLOTS if hyp.read_word(slot)]
    return found
