"""From reserved memory to a working ownership model: what EL2 initialisation does about page tables.

Source of the order: arch/arm64/kvm/hyp/nvhe/setup.c (__pkvm_init, __pkvm_init_finalise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pkvm_emu.abi.ownership import RULES
from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.host_stage2 import HostStage2
from pkvm_emu.hyp.hyp_stage1 import HypStage1
from pkvm_emu.hyp.ownership import Ownership
from pkvm_emu.hyp.page_state import HypVmemmap, MemoryMap, Region
from pkvm_emu.hyp.pgtable import TableFeatures
from pkvm_emu.hyp.pool import Carveout, HypPool, divide_reserve
from pkvm_emu.machine.pagetable import ZERO_PAGE, PhysMem
from pkvm_emu.machine.state import Journal


@dataclass(frozen=True)
class MemoryLayout:
    """Where memory is; addresses and sizes in bytes, page aligned.

    Attributes:
        regions: RAM.
        reserve_base, reserve_size: the part of RAM that the host reserved for EL2.
        linear_offset: hyp VA minus PA of EL2's linear map.
        hyp_va_bits: EL2 address bits.
        ipa_bits: physical address bits.
        protected: ``(start, bytes)`` ranges that the device tree protects.
    """

    regions: tuple[Region, ...]
    reserve_base: int
    reserve_size: int
    linear_offset: int
    hyp_va_bits: int = 48
    ipa_bits: int = 48
    protected: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class HypMemory:
    """What :func:`build_ownership` makes: the model, its parts, and how the reserved memory is divided."""

    ownership: Ownership
    vmemmap: HypVmemmap
    hyp: HypStage1
    host: HostStage2
    hyp_pool: HypPool
    host_pool: HypPool
    carveout: Carveout


def build_ownership(
    journal: Journal,
    mem: PhysMem,
    generation: str,
    layout: MemoryLayout,
    features: TableFeatures,
    flush_host: Callable[[], None] = lambda: None,
    flush_hyp: Callable[[], None] = lambda: None,
    claims: Iterable[tuple[int, int, int]] = (),
) -> HypMemory:
    """Divide the reserved memory, make both tables, populate the host's and take the reserved memory from it.

    Args:
        journal: owner of the Python-side state.
        mem: guest physical memory.
        generation: a name in :data:`pkvm_emu.abi.ownership.RULES`.
        layout: where memory is.
        features: CPU features; LPA2 is left out where the generation does not use it.
        flush_host, flush_hyp: TLB invalidation of stage-2 and of EL2 stage-1.
        claims: further ``(pa, bytes, protection)`` of EL2's own (its image, per-CPU areas).

    Raises:
        UsageError: no such generation.
        ValueError: the reserved memory is too small or not RAM.
    """
    if generation not in RULES:
        raise UsageError(f"generation {generation!r} is not known: choose one of {', '.join(RULES)}")
    rules = RULES[generation]
    features = replace(features, lpa2=features.lpa2 and rules.lpa2_supported)
    memory = MemoryMap(layout.regions)
    if not memory.range_is_memory(layout.reserve_base, layout.reserve_base + layout.reserve_size):
        raise ValueError(f"the reserved range at {layout.reserve_base:#x} is not inside one RAM region")
    carveout = divide_reserve(layout.reserve_base, layout.reserve_size, memory)
    for page in range(carveout.vmemmap_pages):
        mem.write(carveout.vmemmap + page * len(ZERO_PAGE), ZERO_PAGE)
    vmemmap = HypVmemmap(mem, memory, carveout.vmemmap)
    hyp_pool = HypPool(journal, vmemmap, carveout.hyp_tables, carveout.hyp_table_pages, "hyp_pool")
    host_pool = HypPool(journal, vmemmap, carveout.host_tables, carveout.host_table_pages, "host_stage2_pool")
    hyp = HypStage1(hyp_pool, layout.hyp_va_bits, layout.linear_offset, features, flush_hyp)
    host = HostStage2(journal, host_pool, memory, rules, features, layout.ipa_bits, flush_host, layout.protected)
    ownership = Ownership(journal, memory, vmemmap, host, hyp, rules)
    if error := host.prepopulate():
        raise ValueError(f"the host stage-2 cannot map RAM (errno {-error})")
    _claim(ownership, layout.reserve_base, layout.reserve_size)
    for pa, size, prot in claims:
        if error := ownership.claim_for_hyp(pa, size, prot):
            raise ValueError(f"EL2 cannot take {pa:#x}+{size:#x} (errno {-error})")
    for start, size in layout.protected:
        if error := ownership.protect_range(start, size):
            raise ValueError(f"the protected range {start:#x}+{size:#x} cannot be taken (errno {-error})")
    ownership.finish_init()
    return HypMemory(ownership, vmemmap, hyp, host, hyp_pool, host_pool, carveout)


def _claim(ownership: Ownership, base: int, size: int) -> None:
    if error := ownership.claim_for_hyp(base, size):
        raise ValueError(f"the reserved memory at {base:#x} cannot be taken (errno {-error})")
