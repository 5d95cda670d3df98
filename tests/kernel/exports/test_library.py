"""Bitmaps, sorting, checksums, random numbers, text sequences."""

from __future__ import annotations

import struct
import zlib

import pytest
from exports_host import Host

import pkvm_emu


def bitmap(host: Host, value: int, words: int = 3) -> int:
    return host.put(value.to_bytes(8 * words, "little"))


def value_of(host: Host, address: int, bits: int) -> int:
    return int.from_bytes(host.read(address, (bits + 63) // 64 * 8), "little") & ((1 << bits) - 1)


def test_bit_searches_give_the_size_where_there_is_nothing(host: Host) -> None:
    bits = bitmap(host, 1 << 5 | 1 << 70 | 1 << 140)
    assert host.call("_find_first_bit", bits, 192) == 5
    assert host.call("_find_next_bit", bits, 192, 6) == 70
    assert host.call("_find_next_bit", bits, 140, 71) == 140
    assert host.call("_find_last_bit", bits, 192) == 140
    assert host.call("_find_first_zero_bit", bitmap(host, 0xFF), 8) == 8
    assert host.call("_find_next_zero_bit", bitmap(host, 0b1011), 64, 1) == 2
    assert host.call("__find_nth_bit", bits, 192, 2) == 140


def test_5_15_searches_with_one_function_of_six_arguments() -> None:
    host = Host(pkvm_emu.boot("android14-5.15"))
    bits, other = bitmap(host, 0b1100), bitmap(host, 0b1000)
    assert host.call("_find_next_bit", bits, 0, 64, 0, 0, 0) == 2
    assert host.call("_find_next_bit", bits, other, 64, 0, 0, 0) == 3
    assert host.call("_find_next_bit", bits, 0, 64, 2, (1 << 64) - 1, 0) == 4


def test_bitmap_operations(host: Host) -> None:
    dest, left, right = bitmap(host, 0), bitmap(host, 0b1100), bitmap(host, 0b1010)
    assert host.s32("__bitmap_and", dest, left, right, 4) == 1
    assert value_of(host, dest, 4) == 0b1000
    host.call("__bitmap_set", dest, 60, 10)
    assert value_of(host, dest, 128) == 0b1000 | 0x3FF << 60
    host.call("__bitmap_clear", dest, 61, 2)
    assert host.s32("__bitmap_weight", dest, 128) == 9
    assert host.call("bitmap_find_next_zero_area_off", bitmap(host, 0b1111_0011), 64, 0, 4, 3, 0) == 8
    assert host.s32("bitmap_find_free_region", dest, 64, 2) == 4
    assert host.s32("bitmap_parselist", host.put("0-3,8,16-31:2/4"), dest, 64) == 0
    assert value_of(host, dest, 64) == 0xF | 1 << 8 | 0x3333 << 16
    assert host.s32("bitmap_parselist", host.put("3-1"), dest, 64) == -22
    assert host.s32("bitmap_parselist", host.put("64"), dest, 64) == -34


def test_population_counts(host: Host) -> None:
    assert host.call("__sw_hweight64", 0xF0F0_0000_0000_0001) == 9
    assert host.call("__sw_hweight32", 0xFFFF_FFFF_0000_0001) == 1


@pytest.mark.parametrize("with_swap", [False, True])
def test_sort_orders_by_the_modules_comparison(module_host: Host, with_swap: bool) -> None:
    host = module_host
    module = host.system.modules["callbacks"]
    numbers = [5, -3, 99, 0, -3, 42, 7]
    array = host.put(struct.pack("<7i", *numbers))
    compare, swap = module.symbol("compare_ints") or 0, module.symbol("swap_ints") or 0
    host.call("sort", array, 7, 4, compare, swap if with_swap else 0)
    assert list(struct.unpack("<7i", host.read(array, 28))) == sorted(numbers)
    assert (host.kernel.memory.read_u32(module.symbol("swaps") or 0) > 0) == with_swap
    assert host.call("bsearch", host.put(struct.pack("<i", 42)), array, 7, 4, compare) == array + 5 * 4
    assert host.call("bsearch", host.put(struct.pack("<i", 43)), array, 7, 4, compare) == 0


def test_checksums_have_the_values_of_their_catalogue(host: Host) -> None:
    text = host.put(b"123456789")
    assert host.call("crc32_le", 0xFFFF_FFFF, text, 9) ^ 0xFFFF_FFFF == 0xCBF4_3926 == zlib.crc32(b"123456789")
    assert host.call("crc32_be", 0xFFFF_FFFF, text, 9) == 0x0376_E6E7
    assert host.call("__crc32c_le", 0xFFFF_FFFF, text, 9) ^ 0xFFFF_FFFF == 0xE306_9283
    assert host.call("crc16", 0, text, 9) == 0xBB3D
    assert host.call("crc_ccitt", 0, text, 9) == 0x2189
    assert host.call("crc_itu_t", 0, text, 9) == 0x31C3


def test_random_numbers_are_the_same_in_every_run(host: Host) -> None:
    out = host.buffer(64)
    host.call("get_random_bytes", out, 40)
    again = Host(pkvm_emu.boot("android16-6.12"))
    other = again.buffer(64)
    again.call("get_random_bytes", other, 40)
    assert host.read(out, 64) == again.read(other, 64)
    assert host.read(out, 40).count(0) < 8
    assert host.call("get_random_u32") != host.call("get_random_u32")
    assert all(host.call("__get_random_u32_below", 7) < 7 for _ in range(20))


def test_uuids_are_checked_and_read_in_both_orders(host: Host) -> None:
    text, out = host.put("00112233-4455-6677-8899-aabbccddeeff"), host.buffer(16)
    assert host.s32("uuid_parse", text, out) == 0
    assert host.read(out, 16).hex() == "00112233445566778899aabbccddeeff"
    assert host.s32("guid_parse", text, out) == 0
    assert host.read(out, 8).hex() == "3322110055447766"
    assert host.s32("uuid_parse", host.put("00112233"), out) == -22
    host.call("uuid_gen", out)
    made = host.read(out, 16)
    assert (made[6] >> 4, made[8] >> 6) == (4, 2)


@pytest.mark.parametrize("android", ["android15-6.6", "android16-6.12"])
def test_a_trace_seq_takes_whole_pieces_until_it_is_full(android: str) -> None:
    host = Host(pkvm_emu.boot(android))
    pa = host.kernel.pages.alloc_pages(2, zero=True)
    assert pa is not None
    seq = host.kernel.memory.linear_va(pa)
    host.call("trace_seq_puts", seq, host.put("value="))
    host.call("trace_seq_printf", seq, host.put("%d"), 42)
    host.call("trace_seq_putc", seq, ord("\n"))
    assert host.string(seq) == "value=42\n"
    long = host.put("x" * 3000)
    for _ in range(4):
        host.call("trace_seq_puts", seq, long)
    assert len(host.string(seq)) == (3009 if android == "android15-6.6" else 6009)
    host.call("trace_seq_putc", seq, ord("y"))
    assert not host.string(seq).endswith("y")
