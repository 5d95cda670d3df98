"""Temporary mappings of EL2."""

from __future__ import annotations

import pytest
from ops_caller import GENERATIONS

from pkvm_emu.hyp.errors import HypMisuse
from pkvm_emu.hyp.panic import HypPanic
from pkvm_emu.machine.core import Stuck

BLOCK = 2 << 20


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_slot_shows_any_page_until_it_is_cleared(caller, generation: str) -> None:
    ops = caller(generation)
    first, second = ops.page(), ops.page()
    ops.system.machine.ram.write_u64(first + 0x18, 0x1111)
    ops.system.machine.ram.write_u64(second + 0x18, 0x2222)
    va = ops.op("fixmap_map", first + 0x18)
    assert va & 0xFFF == 0x18
    assert ops.load(va) == 0x1111
    ops.store(va, 0x3333)
    ops.op("fixmap_unmap")
    assert ops.system.machine.ram.read_u64(first + 0x18) == 0x3333
    assert ops.op("fixmap_map", second + 0x18) == va
    assert ops.load(va) == 0x2222
    ops.op("fixmap_unmap")
    with pytest.raises(HypPanic):
        ops.load(va)


def test_the_page_that_a_slot_maps_may_be_mapped_again(caller) -> None:
    ops = caller()
    page = ops.page()
    va = ops.op("fixmap_map", page)
    assert ops.op("fixmap_map", page + 0x18) == va + 0x18
    ops.op("fixmap_unmap")
    assert ops.hyp.to_pa(va) is None


def test_a_nested_fixmap_is_an_error_that_names_both_pages(caller) -> None:
    ops = caller()
    first, second = ops.page(), ops.page()
    ops.op("fixmap_map", first)
    with pytest.raises(HypMisuse, match=f"{second:#x}.*maps {first:#x}: the slot does not nest"):
        ops.op("fixmap_map", second)


def test_the_block_slot_maps_two_mebibytes(caller) -> None:
    ops = caller()
    block = ops.page(BLOCK >> 12)
    ops.system.machine.ram.write_u64(block + BLOCK - 8, 0x77)
    va = ops.op("fixblock_map", block)
    assert va % BLOCK == 0
    assert ops.load(va + BLOCK - 8) == 0x77
    ops.op("fixblock_unmap")
    assert ops.hyp.to_pa(va) is None


def test_the_block_slot_is_locked_while_it_is_mapped(caller) -> None:
    ops = caller()
    ops.op("fixblock_map", 0x4000_0000)
    with pytest.raises(Stuck, match="waits for ever for the block slot, which CPU 0 holds"):
        ops.op("fixblock_map", 0x4020_0000)


def test_an_unaligned_block_is_a_bug_and_an_unmap_too_many_is_noticed(caller) -> None:
    ops = caller()
    with pytest.raises(HypMisuse, match="without fixblock_map"):
        ops.op("fixblock_unmap")
    with pytest.raises(HypPanic, match="not 2 MiB aligned") as caught:
        caller().op("fixblock_map", 0x4010_0000)
    assert caught.value.state.is_bug
