"""Ownership across generations: errnos, order of checks, BUGs, failures that are undone, explanations and snapshots."""

from __future__ import annotations

import pytest
from ownership_support import A14, A15, A16, GENERATIONS, PAGE, RAM, RAM_SIZE, RESERVE, RTC, make, name

from pkvm_emu.errors import UsageError
from pkvm_emu.hyp.errors import HypBug
from pkvm_emu.hyp.ownership_setup import MemoryLayout, build_ownership
from pkvm_emu.hyp.page_state import MODULE_OWNED, NOPAGE, OWNED, SHARED_OWNED, Component, Region
from pkvm_emu.hyp.pgtable import PROT_DEVICE, PROT_NORMAL_NC, PROT_PXN, PROT_R, PROT_RW, PROT_RWX, TableFeatures
from pkvm_emu.machine.pagetable import FlatMemory
from pkvm_emu.machine.state import Journal

P = 0x4800_0000
PFN = P >> 12
NOMAP = RAM + RAM_SIZE


@pytest.fixture(params=GENERATIONS)
def any_memory(request):
    memory = make(request.param, regions=(Region(RAM, RAM_SIZE), Region(NOMAP, 16 * PAGE, nomap=True)))
    yield memory
    assert memory.ownership.check_consistency() == []


def drain(pool):
    while pool.try_alloc() is not None:
        pass


def test_every_generation_donates_shares_and_restricts(any_memory):
    m = any_memory.ownership
    for _ in range(2):
        assert m.host_donate_hyp(PFN, 3) == 0
        assert (m.owner_of(P), m.host_state(P), m.hyp_state(P)) == (Component.HYP, NOPAGE, OWNED)
        assert m.check_consistency() == []
        assert m.hyp_donate_host(PFN, 3) == 0
        assert m.host_share_hyp(PFN) == 0
        assert m.host_state(P) == SHARED_OWNED
        assert m.check_consistency() == []
        assert m.host_unshare_hyp(PFN) == 0
        assert m.host_stage2_mod_prot(PFN, PROT_R) == 0
        assert m.host_state(P) == MODULE_OWNED
        assert m.check_consistency() == []
        assert m.host_stage2_mod_prot(PFN, 0) == 0
        assert m.owner_of(P) is Component.PROTECTED
        assert m.host_stage2_mod_prot(PFN, PROT_RWX) == 0
        assert (m.owner_of(P), m.host_state(P)) == (Component.HOST, OWNED)
        m.finalise()


def test_a_shared_page_needs_an_entry_of_its_own_only_where_states_are_in_entries(any_memory):
    m = any_memory.ownership
    assert m.host_share_hyp(PFN) == 0
    leaf = m.host_stage2_get_leaf(P)
    if m.rules.state_in_pte:
        assert (leaf.descriptor, leaf.level) == (P | 1 << 55 | 0x7FF, 3)
    else:
        assert leaf.level == 2


@pytest.mark.parametrize(
    ("generation", "unshare_pinned", "donate_pinned", "share_mmio", "lazy_pinned"),
    [
        ("android14-5.15", "-EBUSY", "-EPERM", "-EPERM", None),
        (A14, "-EBUSY", "-EPERM", "-EPERM", None),
        (A15, "-EINVAL", "-EINVAL", "-EPERM", "-EPERM"),
        (A16, "-EBUSY", "-EPERM", "-EINVAL", "-EPERM"),
    ],
)
def test_errnos_that_differ(generation, unshare_pinned, donate_pinned, share_mmio, lazy_pinned):
    memory = make(generation)
    m, va = memory.ownership, memory.hyp.va_of(P)
    assert m.host_share_hyp(PFN) == 0
    assert m.pin_shared_mem(va, va + PAGE) == 0
    assert name(m.host_unshare_hyp(PFN)) == unshare_pinned
    assert name(m.host_donate_hyp(PFN, 1)) == donate_pinned
    assert name(m.host_share_hyp(RTC >> 12)) == share_mmio
    if lazy_pinned:
        assert name(m.host_stage2_enable_lazy_pte(PFN, 1)) == lazy_pinned


@pytest.mark.parametrize(
    ("generation", "owned_and_counted", "mod_prot", "lazy"),
    [(A14, "0", "0", None), (A15, "-EINVAL", "0", "-EPERM"), (A16, "-EINVAL", "-EINVAL", "-EINVAL")],
)
def test_a_page_used_for_dma_does_not_change_hands(generation, owned_and_counted, mod_prot, lazy):
    m = make(generation).ownership
    assert m.use_dma(P, PAGE) == 0
    if lazy:
        assert name(m.host_stage2_enable_lazy_pte(PFN, 1)) == lazy
    assert name(m.host_stage2_mod_prot(PFN, PROT_R)) == mod_prot
    assert m.host_stage2_mod_prot(PFN, PROT_RWX) == (0 if mod_prot == "0" else -22)
    assert name(m.host_donate_hyp(PFN, 1)) == owned_and_counted


def test_the_donation_op_without_the_mmio_argument_takes_mmio():
    assert make(A14).ownership.host_donate_hyp(RTC >> 12, 1) == 0
    assert name(make(A16).ownership.host_donate_hyp(RTC >> 12, 1)) == "-EPERM"


def test_a_count_that_overflows_is_refused_or_wraps_to_nothing():
    assert name(make(A16).ownership.host_donate_hyp(PFN, 1 << 52)) == "-EINVAL"
    old = make(A14).ownership
    assert old.host_donate_hyp(PFN, 1 << 52, True) == 0
    assert old.owner_of(P) is Component.HOST
    middle = make(A15).ownership
    assert name(middle.host_donate_hyp(PFN, 1 << 52)) == "-EINVAL"  # EL2's own pages above are counted
    with pytest.raises(HypBug, match="vmemmap"):
        middle.host_donate_hyp((RAM + RAM_SIZE >> 12) - 1, 1 << 52)


def test_an_empty_range_at_the_start_of_ram_is_not_ram():
    m = make().ownership
    assert name(m.host_donate_hyp(RAM >> 12, 0)) == "-EPERM"
    assert name(m.host_donate_hyp(RAM >> 12, 0, True)) == "-EINVAL"
    assert m.host_donate_hyp(PFN, 0) == 0
    assert m.events[-1].op == "init"


def test_nomap_memory_never_changes_hands(any_memory):
    m = any_memory.ownership
    assert name(m.host_donate_hyp(NOMAP >> 12, 1)) == "-EPERM"
    assert name(m.host_share_hyp(NOMAP >> 12)) == "-EPERM"
    assert name(m.host_stage2_mod_prot(NOMAP >> 12, PROT_R)) == "-EPERM"


def test_a_range_across_regions_is_refused_or_judged_page_by_page(any_memory):
    m = any_memory.ownership
    across = (NOMAP + 15 * PAGE) >> 12
    expected = "-EPERM" if m.rules.straddle_errno is None else "-EINVAL"
    assert name(m.host_donate_hyp(across, 2, True)) == expected


def test_beyond_the_address_size_is_erange():
    m = make().ownership
    assert name(m.host_donate_hyp(1 << 36, 1, True)) == "-ERANGE"
    assert name(m.hyp_donate_host(1 << 36, 1)) == "-ERANGE"
    assert m.host_stage2_get_leaf(1 << 48) is None
    with pytest.raises(HypBug, match="cannot be filled"):
        m.host_mem_abort(1 << 48, False)


def test_the_end_of_the_address_space_is_an_overflow():
    answers = {g: name(make(g).ownership.host_donate_hyp((1 << 52) - 1, 2, True)) for g in GENERATIONS}
    assert answers == {"android14-5.15": "-ERANGE", A14: "-EINVAL", A15: "-EINVAL", A16: "-EINVAL"}
    m = make().ownership
    assert name(m.host_stage2_mod_prot((1 << 52) - 1, PROT_R, 2)) == "-EINVAL"


@pytest.mark.parametrize("prot", [PROT_RWX | PROT_DEVICE, PROT_RWX | PROT_PXN, PROT_RW | PROT_DEVICE | PROT_NORMAL_NC])
def test_a_protection_that_stage2_does_not_have_is_a_bug(prot):
    with pytest.raises(HypBug, match="host_stage2_mod_prot"):
        make().ownership.host_stage2_mod_prot(PFN, prot)


@pytest.mark.parametrize("prot", [PROT_RWX, 0, PROT_R | PROT_PXN])
def test_a_donation_with_a_protection_that_el2_does_not_have_is_a_bug(prot):
    with pytest.raises(HypBug, match="EL2 cannot map"):
        make().ownership.host_donate_hyp(PFN, 1, prot=prot)


def test_unpinning_what_is_not_pinned_is_a_bug(any_memory):
    m, va = any_memory.ownership, any_memory.hyp.va_of(P)
    assert m.host_share_hyp(PFN) == 0
    with pytest.raises(HypBug, match="below zero"):
        m.unpin_shared_mem(va, va + PAGE)
    with pytest.raises(HypBug, match="below zero"):
        m.unuse_dma(P, PAGE)
    with pytest.raises(HypBug, match="no struct hyp_page"):
        m.unpin_shared_mem(any_memory.hyp.va_of(RTC), any_memory.hyp.va_of(RTC) + 1)


def test_module_ownership_covers_a_range_completely_or_not_at_all(any_memory):
    m = any_memory.ownership
    assert m.host_stage2_mod_prot(PFN, PROT_R, 2) == 0
    assert name(m.host_stage2_mod_prot(PFN + 1, PROT_RW, 2)) == "-EPERM"
    assert m.last_refusal.page == P + 2 * PAGE
    assert name(m.host_stage2_mod_prot(PFN - 1, PROT_RW, 2)) == "-EPERM"
    assert m.host_stage2_mod_prot(PFN, PROT_RWX, 2) == 0
    assert m.host_donate_hyp(PFN, 2) == 0


def test_mmio_permissions_are_applied_without_tracking():
    m = make().ownership
    for prot, leaf in ((PROT_R, 1 << 54 | RTC | 0x47F), (PROT_RW, 1 << 54 | RTC | 0x4FF), (0, 0x10)):
        assert m.host_stage2_mod_prot(RTC >> 12, prot) == 0
        assert m.host_stage2_get_leaf(RTC).descriptor == leaf


def test_a_list_is_checked_completely_before_a_page_moves():
    m = make().ownership
    assert m.host_donate_hyp(PFN + 8, 1) == 0
    assert name(m.host_donate_sglist_hyp([(PFN, 0), (PFN + 8, 2)])) == "-EPERM"
    assert m.owner_of(P) is Component.HOST
    assert name(m.host_donate_sglist_hyp([(PFN, 52)])) == "-EINVAL"
    assert m.host_donate_sglist_hyp([(PFN, 3), (PFN + 16, 0)]) == 0
    assert m.hyp_donate_host(PFN, 9) == 0


@pytest.mark.parametrize("generation", GENERATIONS)
def test_without_el2_table_pages_nothing_changes(generation):
    memory = make(generation)
    m = memory.ownership
    drain(memory.hyp_pool)
    assert name(m.host_donate_hyp(PFN, 1)) == "-ENOMEM"
    assert name(m.host_share_hyp(PFN)) == "-ENOMEM"
    assert (m.owner_of(P), m.host_state(P)) == (Component.HOST, OWNED)
    assert m.check_consistency() == []


def test_a_failing_list_is_mapped_back_but_its_states_stay_taken():
    memory = make()
    m = memory.ownership
    assert m.host_donate_hyp(PFN + 1, 1) == 0  # the table for the first entry exists
    drain(memory.hyp_pool)
    assert name(m.host_donate_sglist_hyp([(PFN, 0), (PFN + 4096, 0)])) == "-ENOMEM"
    assert m.host_stage2_get_leaf(P).valid
    assert m.host_state(P) == NOPAGE
    assert any("NOPAGE" in line for line in m.check_consistency())


def test_lazy_entries_hold_their_table():
    memory = make(A15)
    m = memory.ownership
    m.finalise()
    assert m.host_stage2_enable_lazy_pte(PFN, 2) == 0
    assert m.host_mem_abort(P, False) == 0
    assert (m.host_stage2_get_leaf(P).level, m.host_stage2_get_leaf(P + PAGE).descriptor) == (3, 0)
    assert m.host_stage2_disable_lazy_pte(PFN, 2) == 0
    assert m.host_stage2_get_leaf(P + PAGE).descriptor == 0  # mapped by the next fault only
    assert m.host_mem_abort(P + PAGE, False) == 0
    assert m.host_stage2_get_leaf(P).level == 2
    with pytest.raises(HypBug, match="never on"):
        m.host_stage2_disable_lazy_pte(PFN, 2)


def test_ending_lazy_entries_too_often_is_a_bug():
    m = make().ownership
    assert m.host_stage2_enable_lazy_pte(PFN, 1) == 0
    assert m.host_stage2_disable_lazy_pte(PFN, 1) == 0
    with pytest.raises(HypBug, match="more often than on"):
        m.host_stage2_disable_lazy_pte(PFN, 1)


def test_the_secure_world_borrows_without_an_el2_mapping(any_memory):
    m = any_memory.ownership
    assert m.host_share_ffa(PFN, 2) == 0
    assert (m.host_state(P), m.hyp_state(P)) == (SHARED_OWNED, NOPAGE)
    assert name(m.host_unshare_hyp(PFN)) == "-EPERM"
    assert name(m.host_share_ffa(PFN + 1, 1)) == "-EPERM"
    assert m.host_unshare_ffa(PFN, 2) == 0
    assert name(m.host_share_ffa(PFN, 0)) == ("-EINVAL" if m.rules.empty_share_errno else "0")


def test_mmio_that_devices_use_cannot_be_donated_any_more():
    m = make().ownership
    assert m.use_dma(RTC, PAGE) == 0
    assert m.use_dma(RTC, PAGE) == 0
    assert m.last_refusal is None
    assert name(m.host_donate_hyp(RTC >> 12, 1, True)) == "-EPERM"
    assert m.unuse_dma(RTC, PAGE) == 0
    assert m.host_donate_hyp(PFN, 1) == 0
    assert name(m.use_dma(P, PAGE)) == "-EPERM"
    with pytest.raises(HypBug, match="aligned"):
        m.use_dma(P + 8, PAGE)


def test_early_mappings_do_not_touch_ownership_and_must_end():
    memory = make()
    m = memory.ownership
    va = m.linear_map_early(P, PAGE, PROT_RW)
    assert va == memory.hyp.va_of(P)
    assert m.linear_map_early(P + 1, PAGE, PROT_RW) == 0
    assert (m.host_share_hyp(PFN), m.host_unshare_hyp(PFN)) == (0, 0)
    assert m.linear_map_early(P, PAGE, PROT_RW) == va
    assert m.check_consistency() == []
    with pytest.raises(HypBug, match="linear_map_early"):
        m.finalise()
    m.early_mappings = PAGE
    m.linear_unmap_early(va, PAGE)
    m.finalise()


def test_a_refusal_says_who_has_the_page_and_how_it_came_to_that():
    m = make().ownership
    assert m.host_donate_hyp(PFN, 4, origin="driver.ko hyp_init+0x40") == 0
    assert m.host_share_hyp(PFN + 2) == -1
    refusal = m.last_refusal
    assert (refusal.op, refusal.page, refusal.owner) == ("host_share_hyp", P + 2 * PAGE, Component.HYP)
    assert str(refusal) == (
        "host_share_hyp(0x48002) = -EPERM: the page is not OWNED for the host "
        "(page 0x48002000: owner HYP, host NOPAGE, hyp OWNED)"
    )
    assert m.hyp_donate_host(PFN, 4, origin="later") == 0
    assert [event.origin for event in m.refusal_history()] == ["driver.ko hyp_init+0x40"]
    text = str(m.page(P + 2 * PAGE))
    assert "owner HOST" in text
    assert "#1 host_donate_hyp: OWNED by HOST -> OWNED by HYP by driver.ko hyp_init+0x40" in text


def test_the_iommu_hears_of_every_change_of_hands():
    memory = make()
    m, told, done = memory.ownership, [], []
    memory.host.add_iommu_hooks(lambda *change: told.append(change), done.append)
    m.host_donate_hyp(PFN, 1)
    m.hyp_donate_host(PFN, 1)
    m.host_stage2_mod_prot(PFN, PROT_R, 1, update_iommu=True)
    m.host_stage2_mod_prot(PFN, PROT_RWX, 1)
    m.host_mem_abort(RTC, False)
    m.host_donate_sglist_hyp([(PFN, 0), (PFN + 4, 0)])
    span = (P, P + PAGE)
    assert told == [
        (*span, 0),
        (*span, PROT_RWX),
        (*span, PROT_R),
        (0, RAM, PROT_RW),
        (*span, 0),
        (P + 4 * PAGE, P + 5 * PAGE, 0),
    ]
    assert done == [False, True, True, True, False]


def test_going_back_brings_model_and_tables_back_together():
    journal, ram = Journal(), FlatMemory(RAM_SIZE, RAM)
    layout = MemoryLayout((Region(RAM, RAM_SIZE),), RESERVE, 12 << 20, 1 << 38)
    memory = build_ownership(journal, ram, A16, layout, TableFeatures())
    m = memory.ownership
    m.host_donate_hyp(PFN, 1)
    mark, digest, reserve = journal.mark(), journal.digest(), ram.read(RESERVE, 12 << 20)
    m.finalise()
    m.host_share_hyp(PFN + 1)
    m.host_share_hyp(PFN)
    m.hyp_donate_host(PFN, 1)
    m.host_stage2_mod_prot(PFN + (64 << 10), PROT_R)
    m.linear_map_early(P + 64 * PAGE, PAGE, PROT_RW)
    assert journal.digest() != digest
    journal.undo_to(mark)
    ram.write(RESERVE, reserve)
    assert journal.digest() == digest
    assert m.check_consistency() == []
    assert m.host_stage2_get_leaf(P).descriptor == 0x4
    assert m.hyp_donate_host(PFN, 1) == 0


def test_the_consistency_check_sees_a_table_that_was_written_behind_the_model():
    memory = make()
    m = memory.ownership
    m.host_donate_hyp(PFN, 1)
    ram = memory.vmemmap.mem
    ram.write_u64(m.host_stage2_get_leaf(P).entry, P | 0x4FF)
    assert any("lets it in" in line for line in m.check_consistency())
    ram.write_u64(m.host_stage2_get_leaf(P).entry, 0x4)
    ram.write_u64(memory.hyp.walk(memory.hyp.va_of(P)).entry, 0)
    assert any("does not map it" in line for line in m.check_consistency())


def test_unknown_generations_and_too_little_memory_are_refused():
    with pytest.raises(UsageError, match=r"android16-6\.12"):
        make("android99")
    layout = MemoryLayout((Region(RAM, RAM_SIZE),), RAM - PAGE, 12 << 20, 0)
    with pytest.raises(ValueError, match="not inside one RAM region"):
        build_ownership(Journal(), FlatMemory(RAM_SIZE, RAM), A16, layout, TableFeatures())
