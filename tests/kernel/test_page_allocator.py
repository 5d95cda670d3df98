"""The page allocator: aligned blocks that never overlap, the same addresses every time, and errors that name them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.page_allocator import MAX_ORDER, PageAllocator
from pkvm_emu.machine.memory import make_ram
from pkvm_emu.machine.pagetable import OutOfTablePages
from pkvm_emu.machine.state import Journal

BASE, PAGE = 0x4000_0000, 4096
START, END = BASE + 3 * PAGE, BASE + (2 << 20)


def allocator(journal: Journal | None = None) -> PageAllocator:
    return PageAllocator(journal or Journal(), make_ram(BASE, 4 << 20), START, END)


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 100)), max_size=80)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(STEPS)
def test_blocks_are_aligned_in_range_and_never_overlap(steps: list[tuple[bool, int, int]]) -> None:
    pages, live = allocator(), {}
    for free, order, pick in steps:
        if free and live:
            pa = sorted(live)[pick % len(live)]
            pages.free_pages(pa, live.pop(pa))
        else:
            pa = pages.alloc_pages(order)
            if pa is None:
                continue
            assert pa % (PAGE << order) == 0
            assert START <= pa < pa + (PAGE << order) <= END
            assert all(pa + (PAGE << order) <= other or other + (PAGE << o) <= pa for other, o in live.items())
            assert pages.order_of(pa) == order
            live[pa] = order


def test_the_same_requests_get_the_same_addresses() -> None:
    def run() -> list[int | None]:
        pages = allocator()
        got = [pages.alloc_pages(order) for order in (0, 3, 0, 1, 0)]
        pages.free_pages(got[1], 3)  # type: ignore[arg-type]
        return [*got, pages.alloc_pages(3), pages.alloc_pages(0)]

    first = run()
    assert first == run()
    assert first[5] == first[1]


def test_what_alignment_skips_serves_smaller_requests() -> None:
    pages = allocator()
    assert pages.alloc_pages(4) == BASE + 16 * PAGE
    assert sorted(pages.alloc_pages(order) or 0 for order in (3, 2, 0)) == [START, BASE + 4 * PAGE, BASE + 8 * PAGE]


def test_every_single_page_can_be_had_and_then_none() -> None:
    pages = allocator()
    got = set()
    while (pa := pages.alloc_pages(0)) is not None:
        got.add(pa)
    assert got == set(range(START, END, PAGE))
    with pytest.raises(OutOfTablePages):
        pages.alloc()
    pages.free_pages(START, 0)
    assert pages.alloc() == START


@pytest.mark.parametrize("order", [-1, MAX_ORDER + 1, 9])
def test_an_impossible_order_gives_none(order: int) -> None:
    assert allocator().alloc_pages(order) is None


def test_pages_are_zeroed_on_request_only() -> None:
    ram = make_ram(BASE, 4 << 20)
    pages = PageAllocator(Journal(), ram, START, END)
    pa = pages.alloc_pages(0)
    assert pa is not None
    ram.write_u64(pa, 5)
    pages.free_pages(pa, 0)
    assert pages.alloc_pages(0) == pa
    assert ram.read_u64(pa) == 5
    pages.free_pages(pa, 0)
    assert pages.alloc_pages(0, zero=True) == pa
    assert ram.read_u64(pa) == 0


def test_freeing_wrongly_names_the_block() -> None:
    pages = allocator()
    pa = pages.alloc_pages(2)
    assert pa is not None
    with pytest.raises(ModuleError, match=f"{pa:#x} with order 1: the block was allocated with order 2"):
        pages.free_pages(pa, 1)
    with pytest.raises(ModuleError, match="was not allocated"):
        pages.free_pages(pa + PAGE, 0)
    pages.free_pages(pa, 2)
    with pytest.raises(ModuleError, match="was not allocated"):
        pages.free_pages(pa, 2)


def test_allocations_go_back_with_the_journal() -> None:
    journal = Journal()
    pages = allocator(journal)
    kept = pages.alloc_pages(1)
    mark, digest = journal.mark(), journal.digest()
    taken = [pages.alloc_pages(order) for order in (0, 5, 1)]
    pages.free_pages(kept, 1)  # type: ignore[arg-type]
    journal.undo_to(mark)
    assert journal.digest() == digest
    assert [pages.alloc_pages(order) for order in (0, 5, 1)] == taken
    assert pages.order_of(kept or 0) == 1


def test_after_leaving_a_block_its_free_pages_come_last() -> None:
    """What a kernel allocates once it is up does not lie beside what it allocated while it booted."""
    block = 2 << 20
    ram = make_ram(0x4000_0000, 2 * block)
    pages = PageAllocator(Journal(), ram, 0x4000_0000, 0x4000_0000 + block + 2 * 4096)
    early = pages.alloc_pages(0)
    freed_before, freed_after = pages.alloc_pages(0), pages.alloc_pages(0)
    pages.free_pages(freed_before, 0)
    pages.leave(block)
    pages.free_pages(freed_after, 0)
    assert [pages.alloc_pages(0) for _ in range(2)] == [0x4000_0000 + block, 0x4000_0000 + block + 4096]
    assert pages.alloc_pages(0) == freed_after
    assert early not in [pages.alloc_pages(0) for _ in range(3)]
