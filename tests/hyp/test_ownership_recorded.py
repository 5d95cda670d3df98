"""What a running 6.12.23 kernel answered, operation by operation, early (before deprivilege) and late.

The machine had LPA2, hVHE and 1 GiB of RAM at 0x40000000.
"""

from __future__ import annotations

import pytest
from ownership_support import PAGE, RTC, UART, make, name

P = 0x4189_1000  # lies in a 2 MiB block of its own
R, W, X = 4, 2, 1


class Bench:
    """One boot: early keeps something in the same 2 MiB (a loaded module), late is after finalisation."""

    def __init__(self, late: bool):
        self.memory = make()
        self.model = self.memory.ownership
        self.late = late
        if late:
            self.model.finalise()
            assert self.model.host_mem_abort(UART, is_perm_fault=False) == 0
        else:
            assert self.model.host_donate_hyp((P >> 12) - 1, 1) == 0

    def leaf(self, pa):
        entry = self.model.host_stage2_get_leaf(pa)
        return entry.descriptor, entry.level


@pytest.fixture(params=["early", "late"])
def bench(request):
    made = Bench(request.param == "late")
    yield made
    assert made.model.check_consistency() == []


def test_donation(bench):
    m, pfn = bench.model, P >> 12
    va = bench.memory.hyp.va_of(P)
    home = (0x4180_04FD, 2) if bench.late else (0x4189_14FF, 3)
    assert bench.leaf(P) == home
    assert name(m.hyp_donate_host(pfn, 1)) == "-EPERM"
    assert name(m.host_unshare_hyp(pfn)) == "-EPERM"
    assert m.host_donate_hyp(pfn, 1, False) == 0
    assert bench.leaf(P) == (0x4, 3)
    assert bench.memory.hyp.walk(va).pa == P
    for call, expected in (
        (lambda: m.host_donate_hyp(pfn, 1, False), "-EPERM"),
        (lambda: m.host_donate_hyp(pfn, 1, True), "-EPERM"),
        (lambda: m.host_share_hyp(pfn), "-EPERM"),
        (lambda: m.host_unshare_hyp(pfn), "-EPERM"),
        (lambda: m.pin_shared_mem(va, va + PAGE), "-EPERM"),
        (lambda: m.host_stage2_mod_prot(pfn, R, 1), "-EPERM"),
        (lambda: m.host_stage2_mod_prot(pfn, 0, 1), "-EPERM"),
        (lambda: m.host_stage2_enable_lazy_pte(pfn, 1), "-EPERM"),
        (lambda: m.host_donate_sglist_hyp([(pfn, 0)]), "-EPERM"),
        (lambda: m.hyp_donate_host(pfn, 1), "0"),
    ):
        assert name(call()) == expected
    assert bench.leaf(P) == home
    assert name(m.hyp_donate_host(pfn, 1)) == "-EPERM"


def test_donation_of_odd_ranges(bench):
    m, pfn = bench.model, P >> 12
    rows = [
        (m.host_donate_hyp(pfn, 0, False), "0"),
        (m.hyp_donate_host(pfn, 0), "0"),
        (m.host_donate_hyp(pfn, 1 << 52, False), "-EINVAL"),
        (m.host_donate_hyp(pfn, 1 << 52, True), "-EINVAL"),
        (m.host_donate_hyp(pfn, 1 << 20, False), "-EPERM"),
        (m.host_donate_hyp(pfn, 1 << 20, True), "-EINVAL"),
        (m.host_donate_hyp(UART >> 12, 1, False), "-EPERM"),
        (m.host_donate_hyp(0x1000000, 1, False), "-EPERM"),
        (m.host_donate_hyp(0x1000000, 1, True), "0"),
        (m.hyp_donate_host(0x1000000, 1), "0"),
        (m.host_share_hyp(0x1000000), "-EINVAL"),
    ]
    assert [name(got) for got, _ in rows] == [expected for _, expected in rows]


def test_donation_of_mmio(bench):
    m, pfn = bench.model, RTC >> 12
    assert bench.leaf(RTC) == ((0x40_0000_0000_04FD, 1) if bench.late else (0, 1))
    assert m.host_donate_hyp(pfn, 1, True) == 0
    assert bench.leaf(RTC) == (0x4, 3)
    assert name(m.host_donate_hyp(pfn, 1, True)) == "-EPERM"
    entry = bench.memory.hyp.walk(bench.memory.hyp.va_of(RTC)).descriptor
    assert entry >> 2 & 7 == 4  # nGnRE
    assert m.hyp_donate_host(pfn, 1) == 0
    assert bench.leaf(RTC) == ((0x40_0000_0000_04FD, 1) if bench.late else (0x40_0000_0901_04FF, 3))
    assert name(m.hyp_donate_host(pfn, 1)) == "-EPERM"
    assert name(m.host_share_hyp(pfn)) == "-EINVAL"


def test_donation_with_a_protection_cannot_be_undone(bench):
    m, pfn = bench.model, P >> 12
    assert m.host_donate_hyp(pfn, 1, False, R) == 0
    assert name(m.hyp_donate_host(pfn, 1)) == "-EPERM"
    assert name(m.host_donate_hyp(pfn, 1, False)) == "-EPERM"
    assert bench.leaf(P) == (0x4, 3)


def test_donation_of_a_list(bench):
    m, first, second = bench.model, P >> 12, (P >> 12) + 1
    pair = [(first, 0), (second, 0)]
    assert m.host_donate_sglist_hyp(pair) == 0
    assert name(m.host_donate_sglist_hyp(pair)) == "-EPERM"
    assert m.hyp_donate_host(first, 1) == 0
    assert name(m.host_donate_sglist_hyp(pair)) == "-EPERM"
    assert bench.leaf(P) == (P | 0x4FF, 3)
    assert name(m.host_donate_sglist_hyp([(RTC >> 12, 0)])) == "-EINVAL"
    assert m.hyp_donate_host(second, 1) == 0


def test_sharing(bench):
    m, pfn, va = bench.model, P >> 12, bench.memory.hyp.va_of(P)
    home = (0x4180_04FD, 2) if bench.late else (P | 0x4FF, 3)
    assert name(m.pin_shared_mem(va, va + PAGE)) == "-EPERM"
    assert m.host_share_hyp(pfn) == 0
    assert bench.leaf(P) == home
    refused = [
        m.host_share_hyp(pfn),
        m.host_donate_hyp(pfn, 1, False),
        m.hyp_donate_host(pfn, 1),
        m.host_stage2_mod_prot(pfn, R, 1),
        m.host_stage2_enable_lazy_pte(pfn, 1),
    ]
    assert {name(r) for r in refused} == {"-EPERM"}
    assert m.pin_shared_mem(va, va + PAGE) == 0
    assert m.pin_shared_mem(va + 8, va + 16) == 0
    assert name(m.host_unshare_hyp(pfn)) == "-EBUSY"
    m.unpin_shared_mem(va, va + PAGE)
    assert name(m.host_unshare_hyp(pfn)) == "-EBUSY"
    m.unpin_shared_mem(va, va + PAGE)
    assert m.host_unshare_hyp(pfn) == 0
    assert name(m.host_unshare_hyp(pfn)) == "-EPERM"
    assert bench.leaf(P) == home
    assert m.host_share_hyp(pfn) == 0
    assert name(m.pin_shared_mem(va, va + 2 * PAGE)) == "-EPERM"
    assert m.host_unshare_hyp(pfn) == 0


def test_permissions(bench):
    m, pfn = bench.model, P >> 12
    assert m.host_stage2_mod_prot(pfn, R, 1) == 0
    assert bench.leaf(P) == (0x40_0000_0000_0000 | P | 0x47F, 3)
    refused = [m.host_donate_hyp(pfn, 1, False), m.host_share_hyp(pfn), m.host_stage2_enable_lazy_pte(pfn, 1)]
    assert [name(r) for r in refused] == ["-EPERM"] * 3
    assert name(m.host_stage2_mod_prot(pfn, 0x80, 1)) == "-EINVAL"
    assert name(m.host_mem_abort(P, is_perm_fault=True)) == "-EPERM"
    assert m.host_stage2_mod_prot(pfn, 0, 1) == 0
    assert bench.leaf(P) == (0x10, 3)
    assert name(m.host_mem_abort(P, is_perm_fault=False)) == "-EPERM"
    assert name(m.host_donate_hyp(pfn, 1, False)) == "-EPERM"
    assert m.host_stage2_mod_prot(pfn, R | W, 1) == 0
    assert bench.leaf(P) == (0x40_0000_0000_0000 | P | 0x4FF, 3)
    assert m.host_stage2_mod_prot(pfn, R | W | X, 1) == 0
    assert bench.leaf(P) == ((0x4180_04FD, 2) if bench.late else (P | 0x4FF, 3))
    assert m.host_donate_hyp(pfn, 1, False) == 0
    assert m.hyp_donate_host(pfn, 1) == 0
    assert m.host_stage2_mod_prot(pfn, R, 0) == 0
    assert name(m.host_stage2_mod_prot(pfn, R, 1 << 20)) == "-EPERM"
    assert m.host_stage2_mod_prot(pfn, W, 1) == 0
    assert bench.leaf(P) == (0x40_0000_0000_0000 | P | 0x4BF, 3)
    assert m.host_stage2_mod_prot(pfn, R | W | X, 1) == 0


def test_a_page_kept_by_the_hypervisor_is_refused_to_the_host(bench):
    m = bench.model
    assert m.host_donate_hyp(P >> 12, 1) == 0
    assert name(m.host_mem_abort(P + 0x18, is_perm_fault=False)) == "-EPERM"


def test_lazy_entries(bench):
    m, pfn = bench.model, P >> 12
    assert m.host_stage2_enable_lazy_pte(pfn, 1) == 0
    assert bench.leaf(P) == (0, 3)
    assert m.host_mem_abort(P, is_perm_fault=False) == 0
    assert bench.leaf(P) == (P | 0x4FF, 3)
    assert m.host_stage2_enable_lazy_pte(pfn, 1) == 0
    assert bench.leaf(P) == (0, 3)
    assert m.host_stage2_disable_lazy_pte(pfn, 1) == 0
    assert bench.leaf(P) == (P | 0x4FF, 3)
    assert name(m.host_stage2_enable_lazy_pte(RTC >> 12, 1)) == "-EPERM"
    assert m.host_stage2_disable_lazy_pte(pfn, 1) == 0


def test_the_kernel_image_lies_in_a_block(bench):
    assert bench.leaf(0x4020_0000) == (0x4020_04FD, 2)
