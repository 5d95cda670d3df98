"""hyp_alloc and its top-ups."""

from __future__ import annotations

from errno import ENOENT, ENOMEM

import pytest

from pkvm_emu.hyp.heap import HypHeap
from pkvm_emu.hyp.host_requests import HostRequests
from pkvm_emu.hyp.panic import HypPanic

HEAP = 0
WITH_HEAP = pytest.mark.parametrize("generation", ["15", "16"])


@WITH_HEAP
def test_an_allocation_without_pages_says_how_many_it_lacks(caller, generation: str) -> None:
    ops = caller(generation)
    assert ops.op("hyp_alloc", 5 * 4096) == 0
    assert ops.int("hyp_alloc_errno") == -ENOMEM
    assert ops.op("hyp_alloc_missing_donations") == 6
    assert ops.op("hyp_alloc_missing_donations") == 0


@WITH_HEAP
def test_blocks_are_zeroed_and_disjoint(caller, generation: str) -> None:
    ops = caller(generation)
    ops.give(HEAP, [0] * 4)
    first, second = ops.op("hyp_alloc", 24), ops.op("hyp_alloc", 4096)
    assert ops.int("hyp_alloc_errno") == 0
    assert second >= first + 24
    for va in (first, second, second + 4088):
        assert ops.load(va) == 0
        ops.store(va, 0x55)
    ops.op("hyp_free", first)
    ops.op("hyp_free", second)
    again = ops.op("hyp_alloc", 4096)
    assert ops.load(again) == 0


def test_a_freed_block_is_reused_and_free_neighbours_merge(caller) -> None:
    ops = caller()
    ops.give(HEAP, [0] * 4)
    blocks = [ops.op("hyp_alloc", 64) for _ in range(3)]
    ops.op("hyp_free", blocks[0])
    assert ops.op("hyp_alloc", 64) == blocks[0]
    ops.op("hyp_free", blocks[1])
    ops.op("hyp_free", blocks[0])
    chunks = ops.hyp.part(HypHeap).chunks
    assert [chunk.data for chunk in chunks if chunk.is_used] == [blocks[2]]
    assert len(chunks) == 2


def test_a_write_past_the_end_of_a_block_is_found_at_the_next_call(caller) -> None:
    ops = caller()
    ops.give(HEAP, [0] * 2)
    first, _second = ops.op("hyp_alloc", 64), ops.op("hyp_alloc", 64)
    ops.store(first + 64, 0xBAD)
    with pytest.raises(HypPanic, match=r"chunk header at .* is damaged .*written past its end") as caught:
        ops.op("hyp_alloc", 8)
    assert caught.value.state.is_bug


def test_a_free_of_the_middle_of_a_block_is_a_bug(caller) -> None:
    ops = caller()
    ops.give(HEAP, [0] * 2)
    with pytest.raises(HypPanic, match=r"ops->hyp_free\(\), called by"):
        ops.op("hyp_free", ops.op("hyp_alloc", 256) + 64)


def test_the_host_gets_back_what_is_free(caller) -> None:
    ops = caller()
    given = ops.give(HEAP, [0] * 6)
    block = ops.op("hyp_alloc", 3 * 4096)
    ops.op("hyp_free", block)
    assert ops.hypercall("hyp_alloc_mgt_reclaimable")[1] == 6
    _, head, count, _ = ops.hypercall("hyp_alloc_mgt_reclaim", 6)
    assert count == 6
    returned = []
    while head:
        returned.append(head & ~0xFFF)
        head = ops.system.machine.ram.read_u64(head & ~0xFFF)
    assert sorted(returned) == sorted(given)
    assert all(ops.hyp.ownership.owner_of(pa).name == "HOST" for pa in returned)
    assert ops.hyp.ownership.check_consistency() == []


def test_request_hyp_alloc_leaves_the_missing_pages_for_the_host(caller) -> None:
    ops = caller()
    assert ops.int("request_hyp_alloc") == -ENOENT
    ops.op("hyp_alloc", 4096)
    assert ops.int("request_hyp_alloc") == 0
    request = ops.hyp.part(HostRequests).pending(0)
    assert request is not None
    assert request.pieces == 2
    assert ops.hyp.part(HostRequests).take(0) == (1 | 1 << 8, 2)
