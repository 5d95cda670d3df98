"""Strings, memory, numbers from text, formats, dumps."""

from __future__ import annotations

import struct

import pytest
from exports_host import Host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.numbers import parse_integer

E2BIG, EINVAL, ERANGE = -7, -22, -34


def test_lengths_stop_at_the_nul_or_at_the_bound(host: Host) -> None:
    text = host.put("hello")
    assert host.call("strlen", text) == 5
    assert host.call("strnlen", text, 3) == 3
    assert host.call("strnlen", text, 99) == 5


@pytest.mark.parametrize(
    ("left", "right", "order"), [("a", "b", -1), ("b", "a", 1), ("ab", "ab", 0), ("ab", "abc", -1)]
)
def test_strcmp_gives_the_order(host: Host, left: str, right: str, order: int) -> None:
    assert host.s32("strcmp", host.put(left), host.put(right)) == order


def test_strscpy_reports_what_was_cut(host: Host) -> None:
    dest = host.put(b"\xff" * 8)
    assert host.s64("sized_strscpy", dest, host.put("abcdef"), 4) == E2BIG
    assert host.read(dest, 5) == b"abc\0\xff"
    assert host.s64("sized_strscpy", dest, host.put("abc"), 4) == 3
    assert host.s64("sized_strscpy", dest, host.put("abc"), 0) == E2BIG


def test_strncpy_fills_up_and_strlcpy_returns_the_wanted_length(host: Host) -> None:
    dest = host.put(b"\xff" * 8)
    host.call("strncpy", dest, host.put("ab"), 6)
    assert host.read(dest, 8) == b"ab\0\0\0\0\xff\xff"
    assert host.call("strlcpy", dest, host.put("abcdef"), 3) == 6
    assert host.string(dest) == "ab"


def test_strlcat_into_a_full_buffer_is_a_bug(host: Host) -> None:
    dest = host.put(b"abcd" + bytes(4))
    assert host.call("strlcat", dest, host.put("efgh"), 8) == 8
    assert host.string(dest) == "abcdefg"
    with pytest.raises(KernelOops, match=r"kernel BUG at lib/string\.c"):
        host.call("strlcat", dest, host.put("x"), 4)


def test_a_fortified_call_names_the_function_by_string_or_number(host: Host) -> None:
    with pytest.raises(KernelOops, match="buffer overflow in memcpy"):
        host.call("fortify_panic", host.put("memcpy"))
    with pytest.raises(KernelOops, match="buffer overflow in strscpy"):
        host.call("__fortify_panic", 3 << 1 | 1, 4, 8)


def test_searches_give_addresses_or_null(host: Host) -> None:
    text = host.put("key=value=end")
    assert host.call("strchr", text, ord("=")) == text + 3
    assert host.call("strrchr", text, ord("=")) == text + 9
    assert host.call("strchr", text, 0) == text + 13
    assert host.call("strchr", text, ord("#")) == 0
    assert host.call("strstr", text, host.put("value")) == text + 4
    assert host.call("strnstr", text, host.put("value"), 6) == 0
    assert host.call("strspn", text, host.put("key")) == 3
    assert host.call("strcspn", text, host.put("=")) == 3
    assert host.call("strpbrk", text, host.put("v#")) == text + 4


def test_strsep_walks_through_empty_pieces(host: Host) -> None:
    cursor = host.put(struct.pack("<Q", host.put("a,,b")))
    pieces = []
    separators = host.put(",")
    while piece := host.call("strsep", cursor, separators):
        pieces.append(host.string(piece))
    assert pieces == ["a", "", "b"]
    assert host.u64(cursor) == 0


def test_strim_cuts_both_ends(host: Host) -> None:
    text = host.put("  two words\n ")
    start = host.call("strim", text)
    assert start == text + 2
    assert host.string(start) == "two words"
    assert host.string(host.call("strim", host.put("   "))) == ""


def test_sysfs_strings_match_with_a_newline(host: Host) -> None:
    table = host.put(struct.pack("<3Q", host.put("off"), host.put("on"), 0))
    assert host.s32("match_string", table, (1 << 64) - 1, host.put("on")) == 1
    assert host.s32("match_string", table, (1 << 64) - 1, host.put("on\n")) == EINVAL
    assert host.s32("__sysfs_match_string", table, 3, host.put("on\n")) == 1
    assert host.call("sysfs_streq", host.put("on"), host.put("on\n")) & 1


def test_memory_functions_move_overlapping_ranges(host: Host) -> None:
    place = host.put(bytes(range(200)) * 50, room=64)
    assert host.call("memmove", place + 5, place, 9000) == place + 5
    assert host.read(place + 5, 9000) == (bytes(range(200)) * 50)[:9000]
    host.call("memset", place, 0x17, 5000)
    assert host.call("memchr_inv", place, 0x17, 5000) == 0
    assert host.call("memchr_inv", place, 0x18, 5000) == place
    assert host.s32("memcmp", host.put(b"ab\x80"), host.put(b"ab\x01"), 3) > 0
    assert host.call("memscan", place, 0xFE, 16) == place + 16


def test_a_null_pointer_is_the_oops_of_a_device(host: Host) -> None:
    with pytest.raises(
        KernelOops, match=r"NULL pointer dereference at virtual address 0000000000000000, in strlen\(\)"
    ):
        host.call("strlen", 0)
    assert "NULL pointer dereference" in host.log


def test_writing_to_read_only_memory_is_an_oops(host: Host) -> None:
    with pytest.raises(KernelOops, match="write to read-only memory"):
        host.call("memset", host.kernel.entry("host_hvc"), 0, 4)


@pytest.mark.parametrize(
    ("name", "text", "base", "result", "value"),
    [
        ("kstrtoull", "0x10", 0, 0, 16),
        ("kstrtoull", "0x", 0, EINVAL, None),
        ("kstrtoull", "010", 0, 0, 8),
        ("kstrtoull", "10\n", 10, 0, 10),
        ("kstrtoull", "10\n\n", 10, EINVAL, None),
        ("kstrtoull", "-1", 10, EINVAL, None),
        ("kstrtoull", "99999999999999999999", 10, ERANGE, None),
        ("kstrtoll", "-9223372036854775809", 10, ERANGE, None),
        ("kstrtoint", "-5", 10, 0, 0xFFFF_FFFB),
        ("kstrtou8", "256", 10, ERANGE, None),
        ("kstrtos8", "-128", 10, 0, 0x80),
        ("kstrtou16", "0xFFFF", 16, 0, 0xFFFF),
    ],
)
def test_kstrto_is_strict(host: Host, name: str, text: str, base: int, result: int, value: int | None) -> None:
    place = host.buffer(8)
    assert host.s32(name, host.put(text), base, place) == result
    assert host.u64(place) == (value or 0)


@given(value=st.integers(-(1 << 70), 1 << 70), size=st.sampled_from([1, 2, 4, 8]), signed=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_number_is_read_or_out_of_range(value: int, size: int, signed: bool) -> None:
    bits = 8 * size
    fits = -(1 << (bits - 1)) <= value < 1 << (bits - 1) if signed else 0 <= value < 1 << bits
    parsed = parse_integer(str(value).encode(), 10, size, signed)
    if fits:
        assert not isinstance(parsed, int)
        assert parsed.value == value
    else:
        assert parsed in ((ERANGE,) if signed or value >= 0 else (EINVAL,))


def test_simple_strtoul_says_where_it_stopped(host: Host) -> None:
    text, end = host.put("0x1fz"), host.buffer(8)
    assert host.call("simple_strtoul", text, end, 0) == 0x1F
    assert host.u64(end) == text + 4
    assert host.s64("simple_strtol", host.put("-12"), 0, 10) == -12
    assert host.call("memparse", host.put("4K"), end) == 4096


def test_snprintf_cuts_and_returns_what_it_wanted(host: Host) -> None:
    out, fmt = host.put(b"\xff" * 16), host.put("%d-%s")
    assert host.s32("snprintf", out, 5, fmt, 1234, host.put("tail")) == 9
    assert host.read(out, 6) == b"1234\0\xff"
    assert host.s32("scnprintf", out, 5, fmt, 1234, host.put("tail")) == 4
    assert host.s32("snprintf", 0, 0, fmt, 1234, host.put("tail")) == 9
    assert host.string(host.call("kasprintf", 0xCC0, fmt, 7, host.put("x"))) == "7-x"


def test_compiled_code_passes_variadic_arguments_in_registers_and_on_the_stack(module_host: Host) -> None:
    module = module_host.system.modules["callbacks"]
    out = module_host.buffer(64)
    length = module_host.kernel.call_s32(module.symbol("format_many") or 0, out)
    assert module_host.string(out) == "1 two 3 4 5 6 7 8"
    assert length == 17
    found = module_host.buffer(12)
    scan = module.symbol("scan_three") or 0
    assert module_host.kernel.call_s32(scan, module_host.put("-5:ff 12 rest"), found) == 3
    assert struct.unpack("<3i", module_host.read(found, 12)) == (-5, 255, 12)
    assert module_host.kernel.call_s32(scan, module_host.put("8;"), found) == 1


def test_a_hex_dump_groups_and_shows_characters(host: Host) -> None:
    data, out = host.put(b"Hello\x00\x01~" * 2), host.buffer(128)
    length = host.s32("hex_dump_to_buffer", data, 16, 16, 4, out, 128, 1)
    assert host.string(out) == "6c6c6548 7e01006f 6c6c6548 7e01006f  Hello..~Hello..~"
    assert length == len(host.string(out))
    host.call("print_hex_dump", host.put("\x016"), host.put("d: "), 2, 16, 1, data, 10, 0)
    assert host.log.endswith("d: 00000000: 48 65 6c 6c 6f 00 01 7e 48 65")


def test_hex_digits_both_ways(host: Host) -> None:
    assert host.s32("hex_to_bin", ord("F")) == 15
    assert host.s32("hex_to_bin", ord("g")) == -1
    out = host.buffer(8)
    assert host.s32("hex2bin", out, host.put("c0ffee"), 3) == 0
    assert host.read(out, 3) == b"\xc0\xff\xee"
    assert host.s32("hex2bin", out, host.put("0g"), 1) == EINVAL


def test_kstrdup_copies_and_null_stays_null(host: Host) -> None:
    text = host.put("copy me")
    copy = host.call("kstrdup", text, 0xCC0)
    assert copy != text
    assert host.string(copy) == "copy me"
    assert host.call("kstrdup", 0, 0xCC0) == 0
    assert host.string(host.call("kstrndup", text, 4, 0xCC0)) == "copy"
    host.call("kfree", copy)
    with pytest.raises(ModuleError, match="free already"):
        host.call("kfree", copy)
