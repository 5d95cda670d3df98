"""Every %p extension prints what Documentation/core-api/printk-formats.rst says of it."""

from __future__ import annotations

import datetime
import errno
import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pkvm_emu.kernel.varargs import ValueArgs
from pkvm_emu.kernel.vsprintf import DeviceNode, FormatEnv, GuestFault, format_bytes, format_text, hash_pointer
from pkvm_emu.kernel.vsprintf_env import siphash_u64
from pkvm_emu.kernel.vsprintf_errno import ERRNO_NAMES

DATA = 0xFFFF_8000_0000_1000
NODE = 0xFFFF_0000_0000_4000
ROOT = 0xFFFF_0000_0000_5000
CODE = 0xFFFF_8000_8001_0000
EINVAL = (1 << 64) - 22


@dataclass(frozen=True)
class Node:
    full_name: str
    phandle: int = 0
    flags: int = 0
    compatible: Sequence[str] = ()


class Guest(FormatEnv):
    """Bytes at DATA, two functions, two device-tree nodes and one of every other named object."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content

    def read(self, va: int, size: int) -> bytes:
        if not DATA <= va <= va + size <= DATA + len(self.content):
            raise GuestFault(va, size)
        return self.content[va - DATA : va - DATA + size]

    def read_cstr(self, va: int, limit: int) -> bytes:
        return self.read(va, self.content.index(b"\0") - (va - DATA))[:limit]

    def symbolize(self, va: int) -> str | None:
        if CODE <= va < CODE + 0x40:
            return f"probe+{va - CODE:#x}/0x40 [driver]"
        if CODE + 0x40 <= va < CODE + 0x80:
            return f"core+{va - CODE - 0x40:#x}/0x40"
        return None

    def of_node(self, va: int) -> DeviceNode | None:
        nodes = {NODE: Node("/soc/uart@9000000", 16, 1 << 3 | 1 << 1, ("arm,pl011", "arm,primecell")), ROOT: Node("/")}
        return nodes.get(va)

    def fwnode(self, va: int) -> DeviceNode | None:
        return self.of_node(va - 8)

    def dentry_path(self, va: int, components: int) -> str | None:
        return "/".join(["a", "b", "c", "d", "e"][-components:]) if va == DATA else None

    def file_path(self, va: int, components: int) -> str | None:
        return "/".join(["v", "w", "x", "y", "z"][-components:]) if va == DATA else None

    def block_device_name(self, va: int) -> str | None:
        return "sda1" if va == DATA else None

    def clock_name(self, va: int) -> str | None:
        return "pll1" if va == DATA else None

    def flag_names(self, kind: str) -> Sequence[tuple[int, str]]:
        return {"g": ((3, "GFP_BOTH"), (1, "GFP_ONE"), (8, "GFP_EIGHT")), "p": ((1, "locked"),)}.get(kind, ())


def show(fmt: str, *values: int, content: bytes = b"") -> str:
    return format_text(fmt, ValueArgs(values), Guest(content))


def hashed(va: int) -> str:
    return f"{hash_pointer(va):016x}"


def test_a_plain_pointer_is_the_low_half_of_a_siphash() -> None:
    text = show("%p", DATA)
    assert text == f"{siphash_u64(DATA, (0x706B766D5F656D75, 0x706F696E74657273)) & 0xFFFFFFFF:016x}"
    assert text.startswith("00000000")
    assert text != show("%p", DATA + 8)


def test_siphash_gives_the_published_vector() -> None:
    key = (0x0706050403020100, 0x0F0E0D0C0B0A0908)
    assert siphash_u64(0x0706050403020100, key) == 0x93F5F5799A932462


@pytest.mark.parametrize(
    ("fmt", "value", "expected"),
    [
        ("%p", 0, "0000000000000000"),
        ("%p", EINVAL, "ffffffffffffffea"),
        ("%px", DATA, "ffff800000001000"),
        ("%px", 0x1234, "0000000000001234"),
        ("%20px|", DATA, "    ffff800000001000|"),
        ("%-20px|", DATA, "ffff800000001000    |"),
        ("%8px|", 0x1234, "    1234|"),
        ("%#px", 0x1234, "0x00000000001234"),
        ("%pe", EINVAL, "-EINVAL"),
        ("%10pe|", EINVAL, "   -EINVAL|"),
        ("%pe", (1 << 64) - 517, "-EPROBE_DEFER"),
        ("%pe", (1 << 64) - 1234, "-1234"),
        ("%pe", 0, "0000000000000000"),
        ("%pS", CODE, "probe+0x0/0x40 [driver]"),
        ("%pS", CODE + 0x4C, "core+0xc/0x40"),
        ("%pSR", CODE + 4, "probe+0x4/0x40 [driver]"),
        ("%ps", CODE + 4, "probe [driver]"),
        ("%ps", CODE + 0x44, "core"),
        ("%pB", CODE + 0x40, "probe+0x40/0x40 [driver]"),
        ("%pB", CODE + 0x44, "core+0x4/0x40"),
        ("%pB", CODE, "0xffff800080010000"),
        ("%pB", 0, "0x0"),
        ("%pS", 0x1234, "0x1234"),
        ("%ps", 0x1234, "0x1234"),
        ("%8ps|", CODE + 0x44, "    core|"),
        ("%-8.2ps|", CODE + 0x44, "co      |"),
        ("%pd", DATA, "e"),
        ("%pd2", DATA, "d/e"),
        ("%pd4", DATA, "b/c/d/e"),
        ("%pd5", DATA, "e"),
        ("%pD3", DATA, "x/y/z"),
        ("%4pd|", DATA, "   e|"),
        ("%pg", DATA, "sda1"),
        ("%pC", DATA, "pll1"),
        ("%pCn", DATA, "pll1"),
        ("%pOF", NODE, "/soc/uart@9000000"),
        ("%pOFf", NODE, "/soc/uart@9000000"),
        ("%pOFn", NODE, "uart"),
        ("%pOFp", NODE, "16"),
        ("%pOFP", NODE, "uart@9000000"),
        ("%pOFF", NODE, "D-P-"),
        ("%pOFc", NODE, "arm,pl011"),
        ("%pOFC", NODE, '"arm,pl011","arm,primecell"'),
        ("%pOFfp", NODE, "/soc/uart@9000000:16"),
        ("%pOFfcF", NODE, "/soc/uart@9000000:arm,pl011:D-P-"),
        ("%pOFz", NODE, "/soc/uart@9000000"),
        ("%20pOF|", NODE, "   /soc/uart@9000000|"),
        ("%-20pOF|", NODE, "/soc/uart@9000000   |"),
        ("%pOF", ROOT, "/"),
        ("%pOFP", ROOT, "/"),
        ("%pOFc|", ROOT, "|"),
        ("%pOX", NODE, "(%pO?)"),
        ("%pOF", 0, "(null)"),
        ("%pOF", EINVAL, "(efault)"),
        ("%pfw", NODE + 8, "/soc/uart@9000000"),
        ("%pfwf", NODE + 8, "/soc/uart@9000000"),
        ("%pfwP", NODE + 8, "uart@9000000"),
        ("%pf", NODE + 8, "(%pf?)"),
        ("%pfw", 0, "(null)"),
    ],
)
def test_a_pointer_prints_as_in_the_kernel(fmt: str, value: int, expected: str) -> None:
    assert show(fmt, value) == expected


@pytest.mark.parametrize(
    "fmt", ["%p", "%pK", "%pF", "%pZ", "%pQwerty9", "%pe", "%pOF", "%pfw", "%pd", "%pD", "%pg", "%pC"]
)
def test_what_nobody_knows_prints_hashed_and_takes_its_letters(fmt: str) -> None:
    assert show(f"{fmt} end", CODE) == f"{hashed(CODE)} end"


def test_kptr_restrict_decides_what_pk_shows() -> None:
    guest = Guest()
    texts = []
    for guest.kptr_restrict in (0, 1, 2):
        texts.append(format_text("%pK", ValueArgs([CODE]), guest))
    assert texts == [hashed(CODE), "ffff800080010000", "0000000000000000"]


def test_no_hash_pointers_shows_addresses() -> None:
    class Plain(Guest):
        def hash_pointer(self, va: int) -> int:
            return va

    assert format_text("%p", ValueArgs([CODE]), Plain()) == "ffff800080010000"


U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
BYTES = bytes(range(16))


def resource(start: int, end: int, flags: int) -> bytes:
    return struct.pack("<QQQQ", start, end, 0, flags)


@pytest.mark.parametrize(
    ("fmt", "content", "expected"),
    [
        ("%pa", U64.pack(0x8000_0000), "0x0000000080000000"),
        ("%pap", U64.pack(0x8000_0000), "0x0000000080000000"),
        ("%pad", U64.pack(1), "0x0000000000000001"),
        ("%4pa", U64.pack(1), "0x0000000000000001"),
        ("%pR", resource(0x900_0000, 0x900_0FFF, 0x200), "[mem 0x09000000-0x09000fff]"),
        ("%pR", resource(0x10_0000_0000, 0x10_0000_FFFF, 0x10_2200), "[mem 0x1000000000-0x100000ffff 64bit pref]"),
        ("%pR", resource(0, 0xFF, 0x1020_0100), "[io  0x0000-0x00ff window disabled]"),
        ("%pR", resource(33, 33, 0x400), "[irq 33]"),
        ("%pR", resource(0, 3, 0x800), "[dma 0-3]"),
        ("%pR", resource(0, 0xFF, 0x1000), "[bus 00-ff]"),
        ("%pR", resource(0x1000, 0x1FFF, 0x2000_0200), "[mem size 0x00001000]"),
        ("%pR", resource(1, 2, 0), "[??? 0x00000001-0x00000002 flags 0x0]"),
        ("%pr", resource(0x900_0000, 0x900_0FFF, 0x2200), "[mem 0x09000000-0x09000fff flags 0x2200]"),
        ("%pr", resource(33, 33, 0x400), "[irq 33 flags 0x400]"),
        ("%10pR|", resource(33, 33, 0x400), "  [irq 33]|"),
        ("%pI4", bytes([1, 2, 3, 4]), "1.2.3.4"),
        ("%pi4", bytes([1, 20, 3, 255]), "001.020.003.255"),
        ("%pI4h", bytes([1, 2, 3, 4]), "4.3.2.1"),
        ("%pI4l", bytes([1, 2, 3, 4]), "4.3.2.1"),
        ("%pI4n", bytes([1, 2, 3, 4]), "1.2.3.4"),
        ("%pI4b", bytes([1, 2, 3, 4]), "1.2.3.4"),
        ("%pI6", BYTES, "0001:0203:0405:0607:0809:0a0b:0c0d:0e0f"),
        ("%pi6", BYTES, "000102030405060708090a0b0c0d0e0f"),
        ("%pI6c", bytes(15) + b"\1", "::1"),
        ("%pI6c", bytes(16), "::"),
        ("%pI6c", ipaddress.ip_address("::ffff:1.2.3.4").packed, "::ffff:1.2.3.4"),
        ("%pI6c", ipaddress.ip_address("fe80::5efe:102:304").packed, "fe80::5efe:1.2.3.4"),
        ("%16pI4|", bytes([1, 2, 3, 4]), "         1.2.3.4|"),
        ("%pI5", BYTES, "(%pI?)"),
        ("%pi", BYTES, "(%pi?)"),
        ("%pIS", struct.pack("<HH4s", 2, 0, bytes([1, 2, 3, 4])), "1.2.3.4"),
        ("%pISpc", struct.pack("<H2s4s", 2, (12345).to_bytes(2, "big"), bytes([1, 2, 3, 4])), "1.2.3.4:12345"),
        (
            "%pISpfsc",
            struct.pack("<H2s4s16sI", 10, (80).to_bytes(2, "big"), (7).to_bytes(4, "big"), bytes(15) + b"\1", 3),
            "[::1]:80/7%3",
        ),
        ("%pIS", struct.pack("<H", 99), "(einval)"),
        ("%pM", BYTES, "00:01:02:03:04:05"),
        ("%pMR", BYTES, "05:04:03:02:01:00"),
        ("%pMF", BYTES, "00-01-02-03-04-05"),
        ("%pm", BYTES, "000102030405"),
        ("%pmR", BYTES, "050403020100"),
        ("%20pM|", BYTES, "   00:01:02:03:04:05|"),
        ("%pU", BYTES, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("%pUb", BYTES, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("%pUB", BYTES, "00010203-0405-0607-0809-0A0B0C0D0E0F"),
        ("%pUl", BYTES, "03020100-0504-0706-0809-0a0b0c0d0e0f"),
        ("%pUL", BYTES, "03020100-0504-0706-0809-0A0B0C0D0E0F"),
        ("%ph", BYTES, "00"),
        ("%4ph", BYTES, "00 01 02 03"),
        ("%4phC", BYTES, "00:01:02:03"),
        ("%4phD", BYTES, "00-01-02-03"),
        ("%4phN", BYTES, "00010203"),
        ("%99phN", bytes(64), "00" * 64),
        ("%pGg", U32.pack(0b11), "GFP_BOTH"),
        ("%pGg", U32.pack(0b11001), "GFP_ONE|GFP_EIGHT|0x10"),
        ("%pGg", U32.pack(0), ""),
        ("%pGv", U64.pack(0x33), "0x33"),
        ("%pGp", U64.pack(5), "0x5(locked|0x4)"),
        ("%pGp", U64.pack(0), "0x0()"),
        ("%pGz", U64.pack(0), "(%pG?)"),
        ("%pNF", U64.pack(0xC000), "0x000000000000c000"),
        ("%pN", U64.pack(0), "(%pN?)"),
        ("%p4cc", U32.pack(0x3231_5659), "YV12 little-endian (0x32315659)"),
        ("%p4cc", U32.pack(0xB231_5659), "YV12 big-endian (0xb2315659)"),
        ("%p4cc", U32.pack(0x1011_1213), ".... little-endian (0x10111213)"),
        ("%p4cx", U32.pack(0), "(%p4?)"),
        ("%ptT", struct.pack("<q", 1546615943), "2019-01-04T15:32:23"),
        ("%ptTs", struct.pack("<q", 1546615943), "2019-01-04 15:32:23"),
        ("%ptTd", struct.pack("<q", 1546615943), "2019-01-04"),
        ("%ptTt", struct.pack("<q", 1546615943), "15:32:23"),
        ("%ptTr", struct.pack("<q", 1546615943), "0119-00-04T15:32:23"),
        ("%ptTtr", struct.pack("<q", 1546615943), "15:32:23"),
        ("%ptR", struct.pack("<9i", 23, 32, 15, 4, 0, 119, 5, 3, 0), "2019-01-04T15:32:23"),
        ("%ptRdr", struct.pack("<9i", 23, 32, 15, 4, 0, 119, 5, 3, 0), "0119-00-04"),
        ("%ptRrs", struct.pack("<9i", 23, 32, 15, 4, 0, 119, 5, 3, 0), "0119-00-04 15:32:23"),
        ("%ptX", b"", "(%pt?)"),
        ("%9pE", b'\x1bb \\C\x07"\x90\r]', '\\eb \\C\\a"\\220\\r'),
        ("%10pEhp", b'\x1bb \\C\x07"\x90\r]', '\\x1bb \\C\\x07"\\x90\\x0d]'),
        ("%10pEa", b'\x1bb \\C\x07"\x90\r]', '\\e\\142\\040\\\\\\103\\a\\"\\220\\r\\135'),
        ("%3pEns", b"\0\nA", "\\0\\nA"),
        ("%pE", b"ab", "a"),
        ("%pks", b"text\0", "text"),
        ("%.2pus", b"text\0", "te"),
        ("%pk", b"text\0", "(einval)"),
    ],
)
def test_what_is_behind_a_pointer_prints_as_in_the_kernel(fmt: str, content: bytes, expected: str) -> None:
    assert show(fmt, DATA, content=content) == expected


def test_the_kernel_takes_bytes_from_a0_on_as_printable() -> None:
    assert format_bytes("%4pE", ValueArgs([DATA]), Guest(b"\x7f\x9f\xa0\xff")) == b"\\177\\237\xa0\xff"


def test_star_width_is_the_length_of_a_dump() -> None:
    assert show("%*ph|%*phN", 3, DATA, 2, DATA, content=BYTES) == "00 01 02|0001"


@pytest.mark.parametrize("letter", ["h", "E"])
def test_a_buffer_of_length_zero_prints_nothing_even_at_null(letter: str) -> None:
    assert show(f"[%*p{letter}]", 0, 0) == "[]"


# fmt: off
POINTERS = [
    "pa", "pad", "pR", "pr", "pI4", "pi6", "pIS", "pM", "pm", "pU", "ph", "pb", "pbl", "pE", "pGg", "pNF",
    "p4cc", "ptR", "pd", "pD", "pg", "pC", "pV", "pks",
]
# fmt: on


@pytest.mark.parametrize("extension", POINTERS)
def test_a_bad_pointer_is_not_followed(extension: str) -> None:
    assert show(f"%{extension} %{extension} %{extension}", 0, 0xFFF, EINVAL) == "(null) (efault) (efault)"


# fmt: off
READING = [
    "pa", "pR", "pI4", "pI6c", "pIS", "pM", "pU", "ph", "8pb", "8pbl", "pE", "pGg", "pNF", "p4cc", "ptT", "ptR",
    "pV",
]
# fmt: on


@pytest.mark.parametrize("extension", READING)
def test_an_unmapped_pointer_is_a_fault_that_names_its_conversion(extension: str) -> None:
    with pytest.raises(GuestFault) as caught:
        show(f"%{extension}", CODE)
    assert caught.value.conversion == f"%{extension}"
    assert caught.value.va == CODE


@pytest.mark.parametrize(
    ("bits", "value", "hex_text", "ranges"),
    [
        (0, 0, "", ""),
        (3, 0b101, "5", "0,2"),
        (12, 0x779, "779", "0,3-6,8-10"),
        (32, 0, "00000000", ""),
        (33, 1 << 32 | 1, "1,00000001", "0,32"),
        (40, (1 << 40) - 1, "ff,ffffffff", "0-39"),
        (64, 1 << 63, "80000000,00000000", "63"),
        (100, 0xF << 96 | 0b110, "f,00000000,00000000,00000006", "1-2,96-99"),
        (5, 0xFFFF, "1f", "0-4"),
    ],
)
def test_bitmaps_print_as_hex_and_as_ranges(bits: int, value: int, hex_text: str, ranges: str) -> None:
    content = value.to_bytes(16, "little")
    assert show("%*pb", bits, DATA, content=content) == hex_text
    assert show("%*pbl", bits, DATA, content=content) == ranges


def test_a_bitmap_of_a_million_bits_prints_promptly() -> None:
    bits = (1 << 20) - 1
    content = b"\x55" * (1 << 17)
    assert show("%*pbl", bits, DATA, content=content).endswith(f",{bits - 3},{bits - 1}")
    assert show("%*pb", bits, DATA, content=content)[:18] == "55555555,55555555,"


@given(st.sets(st.integers(0, 127)))
def test_bit_ranges_name_exactly_the_set_bits(bits: set[int]) -> None:
    text = show("%128pbl", DATA, content=sum(1 << bit for bit in bits).to_bytes(16, "little"))
    named: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        named.extend(range(int(first), int(last or first) + 1))
    assert named == sorted(bits)


@given(st.binary(min_size=16, max_size=16))
@example(bytes(6) + b"\0\1" + bytes(6) + b"\0\2")
@example(b"\0\1" + bytes(14))
def test_compressed_ipv6_reads_back_as_the_same_address(address: bytes) -> None:
    assert ipaddress.ip_address(show("%pI6c", DATA, content=address)).packed == address


@given(st.integers(-62135596800, 253402300799))
def test_time64_agrees_with_the_calendar(seconds: int) -> None:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    assert show("%ptT", DATA, content=struct.pack("<q", seconds)) == moment.isoformat()


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_time64_prints(seconds: int) -> None:
    assert show("%ptT", DATA, content=struct.pack("<q", seconds)).endswith(f":{seconds % 60:02d}")


def test_names_outside_ascii_keep_their_text() -> None:
    class Accent(Guest):
        def clock_name(self, va: int) -> str | None:
            return "größe→"

    assert format_text("%pC", ValueArgs([DATA]), Accent()) == "größe→"


def test_error_names_are_those_of_linux() -> None:
    assert {1, 22, 35, 42, 57, 59, 110, 133} < set(ERRNO_NAMES)
    assert [ERRNO_NAMES[n] for n in (1, 11, 22, 35, 42, 57, 59, 95, 110, 133)] == (
        ["EPERM", "EAGAIN", "EINVAL", "EDEADLK", "ENOMSG", "EBADSLT", "EBFONT", "EOPNOTSUPP", "ETIMEDOUT", "EHWPOISON"]
    )
    assert [ERRNO_NAMES[n] for n in (512, 517, 524, 527, 531)] == (
        ["ERESTARTSYS", "EPROBE_DEFER", "ENOTSUPP", "EBADTYPE", "ENOGRACE"]
    )
    assert not {41, 58, 134, 511, 520} & set(ERRNO_NAMES)
    if errno.errorcode.get(110) == "ETIMEDOUT":
        host = {n: name for n, name in errno.errorcode.items() if n in ERRNO_NAMES}
        differing = {n for n, name in host.items() if name != ERRNO_NAMES[n] and getattr(errno, ERRNO_NAMES[n]) != n}
        assert not differing
