"""The printf engine prints what the kernel prints: numbers, strings, characters, and wrong formats too."""

from __future__ import annotations

import contextlib
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkvm_emu.errors import ModuleError
from pkvm_emu.kernel.varargs import ValueArgs
from pkvm_emu.kernel.vsprintf import (
    FormatEnv,
    GuestFault,
    compile_format,
    format_bytes,
    format_text,
    parse_printk_level,
)

TEXT = 0xFFFF_8000_0000_1000
PAGE = 0x1000


class Guest(FormatEnv):
    """One mapped page, with the warnings it was given."""

    def __init__(self, content: bytes = b"") -> None:
        self.page = content.ljust(PAGE, b"\0")
        self.warnings: list[str] = []

    def read(self, va: int, size: int) -> bytes:
        if not TEXT <= va <= va + size <= TEXT + PAGE:
            raise GuestFault(va, size)
        return self.page[va - TEXT : va - TEXT + size]

    def read_cstr(self, va: int, limit: int) -> bytes:
        if not TEXT <= va < TEXT + PAGE:
            raise GuestFault(va)
        data = self.page[va - TEXT : va - TEXT + limit]
        end = data.find(0)
        if end < 0 and len(data) < limit:
            raise GuestFault(TEXT + PAGE)
        return data if end < 0 else data[:end]

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def show(fmt: str | bytes, *values: int, guest: Guest | None = None) -> str:
    return format_text(fmt, ValueArgs(values), guest or Guest(b"hello\0"))


@pytest.mark.parametrize(
    ("fmt", "values", "expected"),
    [
        ("", [], ""),
        ("plain", [], "plain"),
        ("100%%", [], "100%"),
        ("%d", [0], "0"),
        ("%d", [-1], "-1"),
        ("%d", [0xDEAD_0000_0000_0005], "5"),
        ("%d", [0x8000_0000], "-2147483648"),
        ("%i", [7], "7"),
        ("%u", [-1], "4294967295"),
        ("%x", [-1], "ffffffff"),
        ("%X", [0xBEEF], "BEEF"),
        ("%o", [8], "10"),
        ("%hhd", [0x1FF], "-1"),
        ("%hhu", [0x1FF], "255"),
        ("%hd", [0x1_8000], "-32768"),
        ("%hx", [0x1_8000], "8000"),
        ("%ld", [-1], "-1"),
        ("%lu", [-1], "18446744073709551615"),
        ("%llx", [-1], "ffffffffffffffff"),
        ("%Lx", [-1], "ffffffffffffffff"),
        ("%zu", [-1], "18446744073709551615"),
        ("%zd", [-1], "-1"),
        ("%td", [-5], "-5"),
        ("%lld", [1 << 63], "-9223372036854775808"),
        ("%5d|", [42], "   42|"),
        ("%-5d|", [42], "42   |"),
        ("%05d", [-42], "-0042"),
        ("%+d % d", [1, 2], "+1  2"),
        ("%+u", [1], "1"),
        ("%#x", [255], "0xff"),
        ("%#X", [255], "0XFF"),
        ("%#o", [8], "010"),
        ("%#o", [0], "0"),
        ("%#010x", [255], "0x000000ff"),
        ("%.4d", [-7], "-0007"),
        ("%8.4d|", [7], "    0007|"),
        ("%-8.4d|", [7], "0007    |"),
        ("%*d|", [5, 42], "   42|"),
        ("%*d|", [-5, 42], "42   |"),
        ("%.*d", [4, 7], "0007"),
        ("%*.*d|", [6, 3, 7], "   007|"),
        ("%.*d", [-4, 7], "7"),
        ("%c%c", [0x41, 0x142], "AB"),
        ("%3c|%-3c|", [0x41, 0x42], "  A|B  |"),
        ("%s", [TEXT], "hello"),
        ("%8s|", [TEXT], "   hello|"),
        ("%08s|", [TEXT], "   hello|"),
        ("%-8s|", [TEXT], "hello   |"),
        ("%.3s", [TEXT], "hel"),
        ("%.*s", [2, TEXT], "he"),
        ("%.*s|", [-1, TEXT], "|"),
        ("%.s", [TEXT], "hello"),
        ("%-7.2s|", [TEXT], "he     |"),
        ("%s", [0], "(null)"),
        ("%10s", [0], "    (null)"),
        ("%.3s", [0], "(nu"),
        ("%s", [1], "(efault)"),
        ("%s", [0xFFF], "(efault)"),
        ("%s", [-14], "(efault)"),
        ("%s", [-4095], "(efault)"),
        ("%d %s", [3, TEXT], "3 hello"),
    ],
)
def test_a_format_prints_as_in_the_kernel(fmt: str, values: list[int], expected: str) -> None:
    assert show(fmt, *values) == expected


@pytest.mark.parametrize(
    ("fmt", "value", "kernel", "c"),
    [
        ("%#x", 0, "0x0", "0"),
        ("%.0d", 0, "0", ""),
        ("%08.3d", 5, "00000005", "     005"),
        ("%#.3o", 8, "0010", "010"),
    ],
)
def test_the_kernel_differs_from_c_in_these_number_layouts(fmt: str, value: int, kernel: str, c: str) -> None:
    assert show(fmt, value) == kernel != c


FLAGS = st.lists(st.sampled_from("-+ 0"), max_size=4).map("".join)
WIDTH = st.one_of(st.just(""), st.integers(1, 40).map(str))
PRECISION = st.one_of(st.just(""), st.integers(1, 40).map(lambda n: f".{n}"))


@given(FLAGS, WIDTH, st.sampled_from("di"), st.integers(-(2**31), 2**31 - 1))
def test_signed_layout_agrees_with_python(flags: str, width: str, letter: str, value: int) -> None:
    fmt = f"[%{flags}{width}{letter}]"
    assert show(fmt, value) == fmt % value


@given(FLAGS.map(lambda f: f.replace("0", "")), WIDTH, PRECISION, st.integers(-(2**63), 2**63 - 1))
def test_precision_agrees_with_python(flags: str, width: str, precision: str, value: int) -> None:
    fmt = f"[%{flags}{width}{precision}lld]"
    assert show(fmt, value) == fmt.replace("ll", "") % value


@given(
    st.lists(st.sampled_from("-0"), max_size=2).map("".join),
    st.booleans(),
    WIDTH,
    st.sampled_from("xXou"),
    st.integers(0, 2**64 - 1),
)
def test_unsigned_layout_agrees_with_python(flags: str, special: bool, width: str, letter: str, value: int) -> None:
    flags += "#" if special and letter in "xX" else ""
    fmt = f"[%{flags}{width}l{letter}]"
    assert show(fmt, value) == fmt.replace("l", "") % value


@given(st.binary(max_size=40))
def test_no_format_makes_the_engine_fail(fmt: bytes) -> None:
    fmt = re.sub(rb"\d{4,}", b"7", fmt)
    with contextlib.suppress(ModuleError):
        assert isinstance(format_bytes(fmt, ValueArgs([TEXT] * 200), Guest(b"x\0")), bytes)


@given(st.text("%pSsBRrhbMIiUVxK4adDgtCGOFfenukE0123456789cT*.lhz- #", max_size=24), st.integers(0, 2**64 - 1))
def test_no_conversion_fails_but_by_a_named_fault(fmt: str, value: int) -> None:
    fmt = re.sub(r"\d{4,}", "7", fmt)
    argument = value & 0xFFF if "*" in fmt else value
    try:
        outcome = show(fmt, *[argument] * 60)
    except ModuleError as error:
        outcome = str(error)
        assert outcome.startswith(("conversion %", "%pV: "))
    assert isinstance(outcome, str)


@pytest.mark.parametrize(("fmt", "letter"), [("a%n", "n"), ("a%f", "f"), ("a%jd", "j"), ("a%qd", "q"), ("a%", "")])
def test_an_unsupported_conversion_ends_the_text_with_a_warning(fmt: str, letter: str) -> None:
    guest = Guest()
    assert show(f"%d{fmt} %d tail", 1, 2, guest=guest).startswith("1a")
    guest.warnings.clear()
    assert show(fmt, 1, guest=guest) == "a"
    assert guest.warnings == [f"Please remove unsupported %{letter} in format string\n"]


def test_nothing_is_printed_after_an_unsupported_conversion() -> None:
    assert show("%d %n %d", 1, 2, 3) == "1 "


def test_a_width_out_of_range_warns_and_is_clamped() -> None:
    guest = Guest()
    assert len(show("%*d", 1 << 24, 1, guest=guest)) == (1 << 23) - 1
    assert guest.warnings == ["field width 16777216 too large"]
    assert len(show("%.*d", 40000, 1, guest=guest)) == (1 << 15) - 1
    assert guest.warnings[1:] == ["precision 40000 too large"]


def test_a_width_of_any_length_is_clamped() -> None:
    assert len(show("%" + "9" * 5000 + "d", 1)) == (1 << 23) - 1
    assert len(show("%." + "9" * 5000 + "d", 1)) == (1 << 15) - 1
    assert show("%." + "0" * 5000 + "3d", 1) == "001"


def test_a_format_that_would_fill_the_host_is_an_error() -> None:
    with pytest.raises(ModuleError, match="passes 64 MiB"):
        show("%8388607d" * 20, *range(20))


def test_a_format_ends_at_its_nul() -> None:
    assert show(b"one %d\0 two %d", 1) == "one 1"


def test_precision_bounds_what_is_read_of_an_unterminated_string() -> None:
    guest = Guest(b"x" * PAGE)
    assert show("%.4s", TEXT + PAGE - 4, guest=guest) == "xxxx"
    with pytest.raises(GuestFault, match="conversion %s: 1 bytes at 0xffff800000002000"):
        show("%s", TEXT + PAGE - 4, guest=guest)


def test_an_unmapped_string_is_a_fault_that_names_its_conversion() -> None:
    with pytest.raises(GuestFault, match=r"conversion %-8\.3s: .* 0xdead0000") as caught:
        show("%d %-8.3s", 1, 0xDEAD_0000)
    assert caught.value.va == 0xDEAD_0000
    assert caught.value.exit_code == 1


def test_bytes_of_the_guest_are_kept_and_shown_as_utf8() -> None:
    guest = Guest("é".encode() + b"\xff\0")
    assert show("%s", TEXT, guest=guest) == "é\\xff"
    assert format_bytes("ü%s", ValueArgs([TEXT]), guest) == "üé".encode() + b"\xff"


def test_width_counts_bytes() -> None:
    assert format_bytes("%4s", ValueArgs([TEXT]), Guest("é\0".encode())) == b"  " + "é".encode()


def test_a_nul_character_stays_in_the_output() -> None:
    assert format_bytes("a%cb", ValueArgs([0]), Guest()) == b"a\0b"


def test_a_format_is_compiled_once() -> None:
    show("compiled once %d", 1)
    before = compile_format.cache_info().hits
    show("compiled once %d", 2)
    assert compile_format.cache_info().hits == before + 1


def va_format(fmt: bytes, *values: int, at: int = TEXT) -> bytes:
    """A struct va_format at `at`, its va_list, its stack arguments and its format string."""
    stack, text = at + 64, at + 64 + 8 * len(values)
    structure = struct.pack("<QQ", text, at + 16)
    va_list = struct.pack("<QQQii", stack, 0, 0, 0, 0)
    return (structure + va_list).ljust(64, b"\0") + struct.pack(f"<{len(values)}Q", *values) + fmt + b"\0"


def test_a_nested_format_prints_its_own_arguments() -> None:
    guest = Guest(va_format(b"inner %d %lx", 5, 0xABC))
    assert show("%d <%pV> %d", 1, TEXT, 2, guest=guest) == "1 <inner 5 abc> 2"


def test_a_nested_format_can_be_printed_twice_since_its_va_list_is_copied() -> None:
    assert show("%pV %pV", TEXT, TEXT, guest=Guest(va_format(b"%d", 5))) == "5 5"


def test_a_bad_nested_format_is_not_followed() -> None:
    assert show("%pV %pV", 0, -22) == "(null) (efault)"


@pytest.mark.parametrize("fmt", [b"%pV", b"%pV%pV%pV%pV"])
def test_a_format_that_contains_itself_is_an_error(fmt: bytes) -> None:
    with pytest.raises(ModuleError, match="expands without end"):
        show("%pV", TEXT, guest=Guest(va_format(fmt, TEXT, TEXT, TEXT, TEXT)))


def test_nested_formats_are_bounded_in_number_too() -> None:
    wide = TEXT + 0x200
    leaf = va_format(b"x").ljust(0x200, b"\0")

    def nested(count: int) -> str:
        return show("%pV", wide, guest=Guest(leaf + va_format(b"%pV" * count, *[TEXT] * count, at=wide)))

    assert nested(255) == "x" * 255
    with pytest.raises(ModuleError, match="expands without end"):
        nested(256)


@pytest.mark.parametrize(
    ("message", "level", "continued", "text"),
    [
        ("plain", None, False, "plain"),
        ("\x013failed\n", 3, False, "failed\n"),
        ("\x01cmore", None, True, "more"),
        ("\x014\x016warn", 4, False, "warn"),
        ("\x01c\x017both", 7, True, "both"),
        ("\x018no", None, False, "\x018no"),
        ("\x01", None, False, "\x01"),
        ("\x01d", None, False, "\x01d"),
        ("a\x013b", None, False, "a\x013b"),
    ],
)
def test_a_printk_level_is_split_off(message: str, level: int | None, continued: bool, text: str) -> None:
    assert parse_printk_level(message) == (level, text, continued)
