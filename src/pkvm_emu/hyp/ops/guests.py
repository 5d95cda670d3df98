"""Ops about protected guests. Source: arch/arm64/kvm/hyp/nvhe/{modules,pkvm}.c."""

from __future__ import annotations

from errno import EBUSY, EINVAL

from pkvm_emu.hyp.guests import Guests
from pkvm_emu.hyp.hypervisor import Hypervisor
from pkvm_emu.hyp.registry import op
from pkvm_emu.machine.calling import U32, U64, Ptr


@op("register_guest_smc_handler")
def register_guest_smc_handler(hyp: Hypervisor, handler: Ptr, handle: U32) -> int:
    """Be asked about SMCs of protected guests.

    android16: ``handler(in, res, handle)`` for all guests; 0, or -EBUSY when the 16 slots are taken. android15 (later
    releases) takes a VM handle and has one slot a VM: -EINVAL for a handle without VM (inferred), -EBUSY when it is taken.
    """
    if not hyp.generation.faults.guest_smc_per_vm:
        taken = hyp.append("guest_smc_table", "guest_smc_count", hyp.generation.guest_smc_slots, handler)
        return -EBUSY if taken is None else 0
    handles = hyp.part(Guests).handles
    if handle not in handles:
        return -EINVAL
    if handles[handle]:
        return -EBUSY
    handles[handle] = handler
    return 0


@op("guest_stage2_pa")
def guest_stage2_pa(hyp: Hypervisor, handle: U32, ipa: U64, phys: Ptr) -> int:
    """Store the physical address behind a guest's ``ipa`` at ``*phys`` (android15, later releases).

    0; -EINVAL: no such VM, or no page is mapped there.
    """
    pa = hyp.part(Guests).pa_of(handle, ipa)
    if pa is None:
        return -EINVAL
    hyp.write_u64(phys, pa)
    return 0


@op("register_guest_trng_ops")
def register_guest_trng_ops(hyp: Hypervisor, ops: Ptr) -> int:
    """Serve random numbers to guests by ``struct pkvm_module_trng_ops`` at ``ops``; 0 or -EBUSY (android16, later releases)."""
    guests = hyp.part(Guests)
    if guests.trng_ops:
        return -EBUSY
    guests.trng_ops = ops
    return 0
