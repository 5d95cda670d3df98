"""General-purpose pools and XArrays, errors included."""

from __future__ import annotations

import pytest
from exports_host import Host

from pkvm_emu.errors import PkvmEmuError

NO_ADDRESS = (1 << 64) - 1


def test_a_pool_gives_the_first_place_that_fits_and_takes_it_back(host: Host) -> None:
    pool = host.call("gen_pool_create", 8, 0xFFFF_FFFF)
    assert host.call("gen_pool_alloc_algo_owner", pool, 256, 0, 0, 0) == 0
    assert host.s32("gen_pool_add_owner", pool, 0x10_0000, 0x5000_0000, 1024, 0, 0) == 0
    places = [host.call("gen_pool_alloc_algo_owner", pool, size, 0, 0, 0) for size in (1, 300, 256, 1)]
    assert places == [0x10_0000, 0x10_0100, 0x10_0300, 0]
    assert host.call("gen_pool_avail", pool) == 0
    assert host.call("gen_pool_virt_to_phys", pool, 0x10_0104) == 0x5000_0104
    assert host.call("gen_pool_virt_to_phys", pool, 0x20_0000) == NO_ADDRESS
    host.call("gen_pool_free_owner", pool, places[1], 300, 0)
    assert host.call("gen_pool_alloc_algo_owner", pool, 512, 0, 0, 0) == places[1]
    with pytest.raises(PkvmEmuError, match="not allocated so"):
        host.call("gen_pool_free_owner", pool, places[0], 512, 0)
    with pytest.raises(PkvmEmuError):
        host.call("gen_pool_destroy", pool)


def test_an_xarray_keeps_entries_by_index(host: Host) -> None:
    array, place = host.buffer(16), host.buffer(8)
    assert host.call("xa_load", array, 5) == 0
    assert host.call("xa_store", array, 5, 0x1000, 0) == 0
    assert host.call("xa_store", array, 9, 0x2000, 0) == 0
    assert host.u64(array + 8) != 0
    assert host.call("xa_store", array, 5, 0x3000, 0) == 0x1000
    assert host.s32("__xa_insert", array, 5, 0x1, 0) == -16
    assert host.call("xa_find", array, place, NO_ADDRESS, 8) == 0x3000
    assert host.call("xa_find_after", array, place, NO_ADDRESS, 8) == 0x2000
    assert host.u64(place) == 9
    assert host.call("xa_find_after", array, place, NO_ADDRESS, 8) == 0
    assert host.s32("__xa_alloc", array, place, 0x4000, 5 << 32 | 7, 0) == 0
    assert host.u64(place) & 0xFFFF_FFFF == 6
    assert host.s32("__xa_alloc", array, place, 0x4000, 5 << 32 | 6, 0) == -16
    for index in (5, 6, 9):
        assert host.call("xa_erase", array, index)
    assert host.u64(array + 8) == 0
