"""The kernel command line, as ``parse_args`` reads it."""

from __future__ import annotations

import pytest

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.command_line import MAX_LENGTH, CommandLine


def test_a_parameter_has_its_value_and_a_bare_word_an_empty_one() -> None:
    line = CommandLine("console=ttyAMA0,115200 quiet init= a=b=c")
    assert line.get("console") == "ttyAMA0,115200"
    assert line.get("quiet") == line.get("init") == ""
    assert line.get("a") == "b=c"
    assert line.get("absent") is None
    assert line.get("absent", "x") == "x"


def test_the_last_of_a_repeated_parameter_counts() -> None:
    assert CommandLine("a=1 b=2 a=3").get("a") == "3"


@pytest.mark.parametrize("spelled", ["kvm-arm.mode", "kvm_arm.mode"])
def test_dashes_and_underscores_are_the_same(spelled: str) -> None:
    line = CommandLine(f"{spelled}=protected")
    assert line.get("kvm-arm.mode") == line.get("kvm_arm.mode") == "protected"
    assert "kvm-arm.mode" in line
    assert "kvm_arm.mode" in line


@pytest.mark.parametrize(
    ("value", "names"),
    [("a,b", ["a", "b"]), (",a,,b,", ["a", "b"]), ("", []), (",", []), ("a-b,a_c", ["a-b", "a_c"])],
)
def test_empty_names_of_protected_modules_are_left_out(value: str, names: list[str]) -> None:
    assert CommandLine(f"kvm-arm.protected_modules={value}").protected_modules == names


def test_quotes_keep_blanks_together() -> None:
    line = CommandLine('foo.text="two words" bar=1')
    assert line.module_parameters("foo") == [("text", "two words")]
    assert line.get("bar") == "1"


def test_module_parameters_keep_their_order_and_repetition() -> None:
    line = CommandLine("foo.a=1 bar.a=2 foo-x.c=5 foo.b foo.a=3 foo_x.d=6 foobar.z=9")
    assert line.module_parameters("foo") == [("a", "1"), ("b", None), ("a", "3")]
    assert line.module_parameters("foo_x") == line.module_parameters("foo-x") == [("c", "5"), ("d", "6")]


def test_what_follows_two_dashes_is_for_init() -> None:
    line = CommandLine("a=1 -- b=2")
    assert "b" not in line
    assert line.get("a") == "1"


def test_an_open_quote_and_a_line_that_is_too_long_are_refused() -> None:
    with pytest.raises(UsageError, match="open quote"):
        CommandLine('a="b')
    with pytest.raises(UsageError, match="2047"):
        CommandLine("x" * MAX_LENGTH)
    assert str(CommandLine("x" * (MAX_LENGTH - 1))) == "x" * (MAX_LENGTH - 1)
