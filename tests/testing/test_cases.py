"""Declarative cases, as pytest collects them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.errors import InputError, UsageError
from pkvm_emu.testing.cases.reader import CaseFileError, read_case_file

Vendor = Callable[..., pytest.RunResult]
HEAD = 'modules = ["vendor16.ko"]\nandroid = 16\n'


def cases(text: str) -> dict[str, str]:
    return {"vendor.pkvm.toml": HEAD + text}


def test_a_case_does_its_steps_and_judges_what_came_of_them(vendor: Vendor) -> None:
    result = vendor(
        "",
        "-v",
        files=cases(
            """
[[case]]
name = "shares a page once"
expect.dmesg = ["loading out-of-tree", "Found 0 assignable devices"]
expect.secure = true

[[case.step]]
hvc = "hyp_call"
args = [0x48000]
[case.step.expect]
x0 = 0
x1 = 0
x2 = 1
status = "SMCCC_RET_SUCCESS"
ops = { host_share_hyp = 1 }
pages."0x48000000" = { owner = "HOST", host = "SHARED_OWNED" }

[[case.step]]
hvc = "hyp_call"
args = ["0x48000"]
expect = { x1 = "-EPERM", x2 = 2, ops = { host_share_hyp = 1 } }

[[case.step]]
shell = "cd /sys/kernel/tracing/hypervisor; echo 1 > events/hypervisor/host_hcall/enable; echo 1 > tracing_on"
expect.status = 0

[[case.step]]
hvc = 128
args = [0x48001]
expect.trace = "host_hcall id=128 invalid=0"

[[case.step]]
host_write = 0x48001000
value = 0x55
size = 4
[[case.step]]
host_read = 0x48001000
size = 4
expect = { value = 0x55, fault = false }

[[case.step]]
read = "/proc/nothing"
expect.errno = "ENOENT"
[[case.step]]
read = "/proc/modules"
expect.matches = "^vendor "

[[case.step]]
smc = 0x8400FFFF
expect.status = "SMCCC_RET_NOT_SUPPORTED"

[[case]]
name = "the next one begins anew"
[[case.step]]
hvc = "hyp_call"
args = [0x48000]
expect.x2 = 1
"""
        ),
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*vendor.pkvm.toml::shares a page once[[]android16-6.12[]] PASSED*"])


def test_what_is_not_as_expected_is_said_with_its_line(vendor: Vendor) -> None:
    result = vendor(
        "",
        files=cases(
            """
[[case]]
name = "wrong"
[[case.step]]
hvc = "hyp_call"
args = [0x48000]
expect.x1 = 7
expect.x2 = 1
expect.ops.puts = 1
expect.pages."0x48000000" = "HYP"
[[case.step]]
host_read = 0x48000000
expect.fault = true
"""
        ),
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "vendor.pkvm.toml:9: x1 is 0x0, expected 0x7*",
            "vendor.pkvm.toml:11: puts was called 0 times, expected 1 (called: host_share_hyp 1)",
            "vendor.pkvm.toml:12: page 0x48000000: owner is HOST, expected HYP*",
            "vendor.pkvm.toml:15: a fault is expected: read of 8 bytes at 0x48000000 from EL1*",
            "*dmesg of vendor on android16-6.12*",
        ]
    )


def test_a_step_may_have_to_fail(vendor: Vendor) -> None:
    text = """
[[case]]
name = "panics"
[[case.step]]
hvc = "hyp_call"
args = [666]
fails = "hypervisor panic"
"""
    vendor("", files=cases(text)).assert_outcomes(passed=1)
    result = vendor("", files=cases(text.replace("666", "0x48000")))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["vendor.pkvm.toml:6: a failure like 'hypervisor panic' is expected*"])
    result = vendor("", files=cases(text.replace('fails = "hypervisor panic"', "")))
    result.stdout.fnmatch_lines(["vendor.pkvm.toml:6: HypPanic: *"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modules = [\n", r":1: "),
        ("android = 16\n[[case]]\nnam = 1\n", r":2: case\[1\]: .*(nam is not known here|name.*required)"),
        ('[[case]]\nname = "a"\n\n[[case]]\nname = "a"\n', r":4: there is a case 'a' already \(line 1\)"),
        ('[[case]]\nname = "a"\n[[case.step]]\nargs = [1]\n', r":3: case\[1\].step\[1\]: no action"),
        (
            '[[case]]\nname = "a"\n[[case.step]]\nhvc = "x"\nsmc = 1\n',
            r":3: case\[1\].step\[1\]: hvc and smc in one step",
        ),
        ('[[case]]\nname = "a"\n\n[[case.step]]\nhvc = "x"\nargs = [\n 1,\n 1.5,\n]\n', r":6: .*1.5"),
        ('[[case]]\nname = "a"\n[[case.step]]\nhvc = "x"\nexpect.x9 = 1\n', r":5: .*x9 is not known here \(known: x0"),
        ('android = 99\n[[case]]\nname = "a"\n', r":1: .*99"),
        ('[[case]]\nname = "a"\nandroid = "16"\n[[case.step]]\nhost_write = 1\n', r":4: .*'value' is needed"),
        ("", r":1: 'case' is a required property"),
    ],
)
def test_an_error_in_the_file_points_at_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.pkvm.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        read_case_file(file)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.pkvm.toml"
    file.write_bytes(b"a = 1\n\xff\n")
    with pytest.raises(InputError, match=":2: not UTF-8 text"):
        read_case_file(file)


def test_a_bad_file_is_an_error_of_collection_and_not_a_traceback(vendor: Vendor) -> None:
    result = vendor("", files=cases('[[case]]\nname = "x"\nstep = 3\n'))
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*vendor.pkvm.toml:5: case[[]1[]].step: 3 is not of type 'array'*"])
    assert "Traceback" not in result.stdout.str()


def test_a_module_that_was_not_loaded_fails_the_case_unless_that_is_expected(vendor: Vendor) -> None:
    text = """
[[case]]
name = "insecure"
cmdline = "kvm-arm.protected_modules=nobody"
"""
    result = vendor("", files=cases(text))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["vendor.pkvm.toml:4: nobody was not loaded: nobody: no such module was given*"])
    vendor("", files=cases(text + "expect.secure = false\n")).assert_outcomes(passed=1)


def test_ops_can_be_made_to_fail_in_a_case(vendor: Vendor) -> None:
    text = """
[[case]]
name = "refused"
inject = ["host_share_hyp=2:EBUSY"]
step = [
  { hvc = "hyp_call", args = [0x48000], expect.x1 = 0 },
  { hvc = "hyp_call", args = [0x48001], expect.x1 = "-EBUSY" },
]
[[case]]
name = "not in the next one"
step = [
  { hvc = "hyp_call", args = [0x48000], expect.x1 = 0 },
  { hvc = "hyp_call", args = [0x48001], expect.x1 = 0 },
]
"""
    vendor("", files=cases(text)).assert_outcomes(passed=2)


def test_a_case_is_made_of_each_row(vendor: Vendor) -> None:
    text = """
[[case]]
name = "page {pfn} gives {x1}"
each = [{ pfn = 0x48000, x1 = 0, owner = "HOST" }, { pfn = 0x700000000, x1 = "-EINVAL", owner = "HYP" }]
[[case.step]]
hvc = "hyp_call"
args = ["{pfn}"]
expect.x1 = "{x1}"
"""
    result = vendor("", "-v", files=cases(text))
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*page 0x48000 gives 0*PASSED*", "*page 0x700000000 gives -EINVAL*PASSED*"])


@pytest.mark.parametrize(
    ("case", "line", "words"),
    [
        ('each = [{ p = 1 }]\nname = "{q}"', 5, "a row of each has no 'q'"),
        ('name = "x"\neach = 3', 5, "each is an array of tables"),
        ('name = "x"\neach = [{ p = 3 }, { p = 3 }]', 4, "there is a case 'x' already"),
        ('name = "{p}"\neach = [{ p = "a" }, { p = "b" }]\n[[case.step]]\nsmc = -1', 7, "case[1].step[1].smc"),
    ],
)
def test_what_is_wrong_about_each_is_said_with_its_line(tmp_path: Path, case: str, line: int, words: str) -> None:
    path = tmp_path / "a.pkvm.toml"
    path.write_text(f'modules = ["a.ko"]\n\n[[case]]\n{case}\n')
    with pytest.raises(CaseFileError, match=re.escape(words)) as caught:
        read_case_file(path)
    assert abs(caught.value.line - line) <= 1


def test_expectations_that_mean_nothing_fail_at_their_line(vendor: Vendor) -> None:
    text = """
[[case]]
name = "x"
[[case.step]]
hvc = "hyp_call"
args = [0x48000]
[case.step.expect]
x0 = 0
dmesg = "(("
pages."nothing" = "HYP"
"""
    result = vendor("", files=cases(text))
    result.stdout.fnmatch_lines(
        [
            "vendor.pkvm.toml:11: dmesg cannot be judged: '((' is no regular expression*",
            "vendor.pkvm.toml:12: pages cannot be judged: 'nothing' is neither an address nor a symbol*",
        ]
    )


def test_files_in_boot_are_relative_to_the_case_file_and_unknown_arguments_are_named(tmp_path: Path) -> None:
    (tmp_path / "uart.py").write_text("")
    path = tmp_path / "a.pkvm.toml"
    path.write_text('[boot]\nmmio = ["0x0a000000:0x1000=uart.py"]\n[[case]]\nname = "x"\n')
    recipe = read_case_file(path).cases[0].recipe(path, None)
    assert dict(recipe.options)["mmio"] == (f"0x0a000000:0x1000={tmp_path / 'uart.py'}",)
    hash(recipe.fingerprint)
    path.write_text('[boot]\nmodels = 3\n[[case]]\nname = "x"\n')
    with pytest.raises(UsageError, match="'models' is nothing that a boot takes"):
        read_case_file(path).cases[0].recipe(path, None)
