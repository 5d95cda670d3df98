"""What differs between Android generations in page ownership and in the host stage-2: one row of data each.

Sources: arch/arm64/kvm/hyp/nvhe/mem_protect.c and arch/arm64/kvm/hyp/pgtable.c of each branch (5.15,
6.1, 6.6: late LTS; 6.12: 6.12.23), and, for 6.12, what a running kernel answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pkvm_emu.abi.errno import EBUSY, EINVAL, EPERM


@dataclass(frozen=True)
class OwnershipRules:
    """The rules of one generation. Errnos are negative, as EL2 returns them.

    Attributes:
        name: the generation, as users write it.
        state_in_pte: the host's page states are software bits of its stage-2 entries (so a shared page needs a
            page-sized entry); otherwise they are in the vmemmap and the entry does not change.
        size_overflow_checked: a page count that overflows when shifted is -EINVAL; otherwise it wraps to a short range.
        end_overflow_checked: address plus size beyond 64 bits is -EINVAL.
        straddle_errno: errno of a range that is partly RAM and partly not; None: each page is judged by itself.
        share_non_ram_errno: errno of sharing, unsharing or pinning outside RAM by the first check of the host side;
            None: the state is checked first and the hypervisor side answers -EPERM.
        refcount_check: when an owned page with references (DMA, pins) is refused: never, before or after its state.
        refcounted_errno: errno of that refusal.
        unshare_pinned_check: when a pinned page refuses to be unshared: before the host's state, between the host's and
            the hypervisor's state, or after both.
        unshare_pinned_errno: errno of that refusal.
        empty_share_errno: errno of sharing no page at all with FF-A (0: accepted).
        mmio_always_accepted: the donation op takes MMIO without being asked to.
        hyp_mapped_first: a donation or share maps at EL2 first and takes the page from the host afterwards.
        dma_needs_owned: devices may only reach pages that the host shares with nobody.
        mod_prot_takes_range: the permission op has a page count and tells the IOMMU core on request; otherwise it takes
            one page.
        lazy_refcounted_errno: errno of lazy entries for a page with references.
        lazy_disable_maps: switching lazy entries off maps the page again at once.
        give_back_maps: a page that returns to the host is mapped at once; otherwise its entry is emptied.
        prefill_target_blocks: a block that is split is refilled completely except for the pages being changed;
            otherwise a block below it that starts exactly at the range being changed is left empty too.
        empty_tables: what happens to a table without counted entries: it becomes a block when a default mapping was
            made in it (after finalisation only), or it is removed when an annotation was written in it.
        unlinked_table_must_be_idle: replacing a table that is pinned by a block is a BUG.
        fault_recycles_tables: a fault that finds the table pool empty drops the MMIO mappings and tries again.
        host_tables_pinned: the tables that exist at the end of EL2 initialisation are never given up.
        lpa2_supported: KVM uses FEAT_LPA2 (no shareability field in descriptors) where the CPU has it.
    """

    name: str
    state_in_pte: bool
    size_overflow_checked: bool
    end_overflow_checked: bool
    straddle_errno: int | None
    share_non_ram_errno: int | None
    refcount_check: Literal["never", "before_state", "after_state"]
    refcounted_errno: int
    unshare_pinned_check: Literal["first", "between", "last"]
    unshare_pinned_errno: int
    empty_share_errno: int
    mmio_always_accepted: bool
    hyp_mapped_first: bool
    mod_prot_takes_range: bool
    dma_needs_owned: bool
    lazy_refcounted_errno: int
    lazy_disable_maps: bool
    give_back_maps: bool
    prefill_target_blocks: bool
    empty_tables: Literal["become_blocks", "are_removed"]
    unlinked_table_must_be_idle: bool
    fault_recycles_tables: bool
    host_tables_pinned: bool
    lpa2_supported: bool


_ANDROID16 = OwnershipRules(
    name="android16-6.12",
    state_in_pte=False,
    size_overflow_checked=True,
    end_overflow_checked=True,
    straddle_errno=-EINVAL,
    share_non_ram_errno=-EINVAL,
    refcount_check="after_state",
    refcounted_errno=-EINVAL,
    unshare_pinned_check="last",
    unshare_pinned_errno=-EBUSY,
    empty_share_errno=0,
    mmio_always_accepted=False,
    hyp_mapped_first=True,
    mod_prot_takes_range=True,
    dma_needs_owned=True,
    lazy_refcounted_errno=-EINVAL,
    lazy_disable_maps=True,
    give_back_maps=True,
    prefill_target_blocks=True,
    empty_tables="become_blocks",
    unlinked_table_must_be_idle=True,
    fault_recycles_tables=True,
    host_tables_pinned=True,
    lpa2_supported=True,
)

_ANDROID15 = replace(
    _ANDROID16,
    name="android15-6.6",
    size_overflow_checked=False,
    share_non_ram_errno=None,
    refcount_check="before_state",
    unshare_pinned_check="first",
    unshare_pinned_errno=-EINVAL,
    empty_share_errno=-EINVAL,
    hyp_mapped_first=False,
    dma_needs_owned=False,
    lazy_refcounted_errno=-EPERM,
    lazy_disable_maps=False,
    lpa2_supported=False,
)

_ANDROID14 = replace(
    _ANDROID15,
    name="android14-6.1",
    state_in_pte=True,
    straddle_errno=None,
    refcount_check="never",
    unshare_pinned_check="between",
    unshare_pinned_errno=-EBUSY,
    empty_share_errno=0,
    mmio_always_accepted=True,
    mod_prot_takes_range=False,
    give_back_maps=False,
    prefill_target_blocks=False,
    empty_tables="are_removed",
    unlinked_table_must_be_idle=False,
    fault_recycles_tables=False,
)

_ANDROID14_5_15 = replace(_ANDROID14, name="android14-5.15", end_overflow_checked=False)

#: The rules by generation name.
RULES: dict[str, OwnershipRules] = {
    rules.name: rules for rules in (_ANDROID14_5_15, _ANDROID14, _ANDROID15, _ANDROID16)
}
