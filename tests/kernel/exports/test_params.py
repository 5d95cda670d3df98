"""Module parameters: types, ranges and texts as the kernel has them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from exports_host import Host

import pkvm_emu

ERANGE, EINVAL, ENOSPC, EROFS = -34, -22, -28, -30


def parameter(host: Host, argument: int) -> int:
    """A ``struct kernel_param`` called "demo.value"."""
    return host.put(struct.pack("<QQQHbxIQ", host.put("demo.value"), 0, 0, 0o644, -1, 0, argument))


def set_and_get(host: Host, kind: str, text: str, argument: int) -> str | int:
    kp, page = parameter(host, argument), host.buffer(512)
    result = host.s32(f"param_set_{kind}", host.put(text), kp)
    if result:
        return result
    length = host.s32(f"param_get_{kind}", page, kp)
    assert length == len(host.string(page))
    return host.string(page)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("byte", "255", "255\n"),
        ("byte", "256", ERANGE),
        ("byte", "-1", EINVAL),
        ("short", "-32768", "-32768\n"),
        ("short", "32768", ERANGE),
        ("ushort", "0xffff\n", "65535\n"),
        ("int", "-2147483648", "-2147483648\n"),
        ("int", "2147483648", ERANGE),
        ("int", "12 ", EINVAL),
        ("int", "", EINVAL),
        ("uint", "+4294967295", "4294967295\n"),
        ("long", "-9223372036854775808", "-9223372036854775808\n"),
        ("ulong", "0777", "511\n"),
        ("ulong", "089", EINVAL),
        ("ullong", "18446744073709551616", ERANGE),
        ("hexint", "16", "0x000010\n"),
        ("bool", "on", "Y\n"),
        ("bool", "0", "N\n"),
        ("bool", "maybe", EINVAL),
        ("invbool", "y", "Y\n"),
    ],
)
def test_a_type_takes_what_fits_and_prints_it_back(host: Host, kind: str, text: str, expected: str | int) -> None:
    assert set_and_get(host, kind, text, host.buffer(8)) == expected


def test_only_as_many_bytes_as_the_type_has_are_written(host: Host) -> None:
    place = host.put(b"\xaa" * 8)
    assert set_and_get(host, "short", "1", place) == "1\n"
    assert host.read(place, 8) == b"\x01\x00" + b"\xaa" * 6


def test_a_bool_that_may_only_be_enabled_stays_on(host: Host) -> None:
    kp = parameter(host, host.buffer(1))
    assert host.s32("param_set_bool_enable_only", host.put("n"), kp) == 0
    assert host.s32("param_set_bool_enable_only", host.put("y"), kp) == 0
    assert host.s32("param_set_bool_enable_only", host.put("n"), kp) == EROFS


def test_a_bare_name_sets_a_bool(host: Host) -> None:
    place = host.buffer(1)
    assert host.s32("param_set_bool", 0, parameter(host, place)) == 0
    assert host.read(place, 1) == b"\x01"


def test_a_charp_is_a_copy_of_1024_characters_at_most(host: Host) -> None:
    slot = host.put(struct.pack("<Q", host.put("default")))
    text = host.put("x" * 1024)
    assert host.s32("param_set_charp", text, parameter(host, slot)) == 0
    assert host.u64(slot) != text
    assert host.string(host.u64(slot)) == "x" * 1024
    assert host.s32("param_set_charp", host.put("x" * 1025), parameter(host, slot)) == ENOSPC
    assert "demo.value: string parameter too long" in host.log


def test_a_copystring_must_fit_its_buffer(host: Host) -> None:
    place = host.buffer(8)
    descriptor = host.put(struct.pack("<IxxxxQ", 4, place))
    kp = parameter(host, descriptor)
    assert host.s32("param_set_copystring", host.put("abc"), kp) == 0
    assert host.s32("param_set_copystring", host.put("abcd"), kp) == ENOSPC
    assert host.string(place) == "abc"


def test_an_array_takes_a_list_and_refuses_one_too_many(host: Host) -> None:
    elements, count, page = host.buffer(16), host.buffer(4), host.buffer(256)
    ops = host.kernel.symbols.resolve("param_ops_int")
    kp = parameter(host, host.put(struct.pack("<IIQQQ", 3, 4, count, ops, elements)))
    array_ops = host.kernel.symbols.resolve("param_array_ops")
    setter, getter = host.u64(array_ops + 8), host.u64(array_ops + 16)
    assert host.kernel.call_s32(setter, host.put("1,-2,3"), kp) == 0
    assert struct.unpack("<3iI", host.read(elements, 12) + host.read(count, 4)) == (1, -2, 3, 3)
    assert host.kernel.call_s32(getter, page, kp) == len("1,-2,3\n")
    assert host.string(page) == "1,-2,3\n"
    assert host.kernel.call_s32(setter, host.put("1,2,3,4"), kp) == EINVAL
    assert host.kernel.call_s32(setter, host.put("1,x"), kp) == EINVAL


def test_insmod_sets_the_parameters_of_a_module(callbacks_module: Path) -> None:
    line = "callbacks.number=42 callbacks.label=hello callbacks.flag"
    with pkvm_emu.boot("android16-6.12", modules=[callbacks_module], cmdline=line) as system:
        parameters = system.kernel.parameters
        found = {p.name: parameters.get(p) for p in parameters.of(system.modules["callbacks"])}
    assert found == {"number": "42\n", "label": "hello\n", "flag": "Y\n"}
