"""Boot configuration: the text format, what it adds to the command line, and ``/proc/bootconfig``."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkvm_emu.errors import InputError
from pkvm_emu.kernel.command_line import CommandLine
from pkvm_emu.kernel.initramfs.bootconfig import BootConfig


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a = 1\nb.c=2", {"a": ["1"], "b.c": ["2"]}),
        ("a = 1; b = 2 # comment\n# more\n", {"a": ["1"], "b": ["2"]}),
        ("a = 'x; y', \"it's\", z", {"a": ["x; y", "it's", "z"]}),
        ("a = 1,\n  2\nb", {"a": ["1", "2"], "b": []}),
        ("a { b = 1; c { d } e = 2 }", {"a.b": ["1"], "a.c.d": [], "a.e": ["2"]}),
        ("a = 1\na += 2\n", {"a": ["1", "2"]}),
        ("a = 1\na := 2\n", {"a": ["2"]}),
        ("androidboot.verifiedbootstate = two words here\n", {"androidboot.verifiedbootstate": ["two words here"]}),
        ("a = http://x:1/?q=2\n", {"a": ["http://x:1/?q=2"]}),
        ("a =\n", {"a": [""]}),
        ("", {}),
    ],
)
def test_keys_and_values_are_read(text: str, values: dict[str, list[str]]) -> None:
    assert BootConfig.parse(text).values == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\na = 2\n", "line 2: the value of a is redefined"),
        ("a {\n", "a brace is not closed"),
        ("}\n", "an unexpected closing brace"),
        ("= 1\n", "'=' is no key"),
        ("a b = 1\n", "'b' after the key a"),
        ("a/b = 1\n", "'a/b' is no key"),
        ('a = "x" y\n', "'y' after a value"),
        ("a" * 300 + " = 1", "a key is too long"),
        ("a {" * 40, "nested too deeply"),
        ("a = 1\n" * 6000, "the kernel takes 32767"),
    ],
)
def test_damage_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BootConfig.parse(text)


@settings(max_examples=300)
@given(st.text(alphabet="ab.={};,+:#'\" \n/\0\u1234", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        config = BootConfig.parse(text)
    except InputError:
        return
    assert config.proc_text().count("\n") >= len(config)


CONFIG = BootConfig.parse(
    'androidboot.hardware = akita\nkernel { quiet; foo.x = 1, "a b" }\ninit.arg = 3\nsays = \'"hi"\'\n'
)


def test_kernel_keys_go_in_front_of_the_command_line_and_init_keys_behind() -> None:
    words = CONFIG.command_line("kernel"), CONFIG.command_line("init")
    assert words == ('quiet foo.x=1 foo.x="a b"', "arg=3")
    assert CONFIG.command_line("kernel", always_quoted=True) == 'quiet foo.x="1" foo.x="a b"'
    line = CommandLine("bootconfig foo.y=2", *words)
    assert str(line) == 'quiet foo.x=1 foo.x="a b" bootconfig foo.y=2 -- arg=3'
    assert line.module_parameters("foo") == [("x", "1"), ("x", "a b"), ("y", "2")]
    assert str(CommandLine("a -- b", "", "c")) == "a -- b c"


def test_early_parameters_are_not_taken_from_the_bootconfig() -> None:
    line = CommandLine("kvm-arm.protected_modules=a", "kvm-arm.protected_modules=b kvm-arm.mode=none x=1")
    assert line.protected_modules == ["a"]
    assert line.get("kvm-arm.mode", "unset") == "unset"
    assert "kvm-arm.mode" not in line
    assert line.get("x") == "1"
    assert line.too_late == ["kvm-arm.protected_modules", "kvm-arm.mode"]


def test_the_proc_file_has_a_line_a_key() -> None:
    assert CONFIG.proc_text() == (
        'androidboot.hardware = "akita"\nkernel.quiet = ""\nkernel.foo.x = "1", "a b"\ninit.arg = "3"\nsays = \'"hi"\'\n'
    )


def test_nodes_are_counted_as_the_kernel_prints_them() -> None:
    # androidboot, hardware, kernel, quiet, foo, x, init, arg, says, and five values.
    assert CONFIG.node_count == 9 + 5
