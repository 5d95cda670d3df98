"""Golden behaviour and contracts under pytest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.testing.golden.files import GoldenFiles, file_name

Vendor = Callable[..., pytest.RunResult]
TEST = """
import pytest

@pytest.mark.pkvm(modules=["vendor16.ko"])
def test_it(pkvm_system):
    for page in {pages}:
        pkvm_system.call("hyp_call", page)
"""


def test_behaviour_is_written_first_and_compared_afterwards(vendor: Vendor, pytester: pytest.Pytester) -> None:
    first = vendor(TEST.format(pages=[0x48000]), "--pkvm-golden")
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines(["*golden files written*", "*boot.vendor.android16-6.12.txt", "*test_it.txt"])
    files = sorted(path.relative_to(pytester.path).as_posix() for path in (pytester.path / "golden").rglob("*.txt"))
    stem = next(pytester.path.glob("test_*.py")).stem
    assert files == ["golden/boot.vendor.android16-6.12.txt", f"golden/{stem}/test_it.txt"]
    text = (pytester.path / files[1]).read_text()
    assert text.startswith("hvc hyp_call(x1=0x48000) = x0=0 x2=1\n")
    assert text.endswith("\n")
    assert text.splitlines()[-2] == "instructions:"
    assert "  op host_share_hyp(pfn=0x48000) = 0  by vendor:hyp_call\n" in text
    assert "    page 0x48000000: OWNED by HOST -> SHARED with HYP\n" in text
    assert "pages:\n  0x48000000: HOST, host SHARED_OWNED, hyp SHARED_BORROWED\n" in text
    assert "128: vendor:hyp_call" in (pytester.path / files[0]).read_text()
    assert "128: vendor:hyp_call" not in text

    vendor(TEST.format(pages=[0x48000]), "--pkvm-golden").assert_outcomes(passed=1)
    changed = vendor(TEST.format(pages=[0x48000, 0x48000]), "--pkvm-golden")
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(
        ["*the behaviour is not the golden one*", "+hvc hyp_call(x1=0x48000) = x0=0 x1=-EPERM x2=2*"]
    )
    vendor(TEST.format(pages=[0x48000, 0x48000]), "--pkvm-update").assert_outcomes(passed=1)
    vendor(TEST.format(pages=[0x48000, 0x48000]), "--pkvm-golden").assert_outcomes(passed=1)


def test_behaviour_does_not_depend_on_the_tests_before(vendor: Vendor, pytester: pytest.Pytester) -> None:
    source = (
        TEST.format(pages=[0x48000])
        + """
@pytest.mark.pkvm(modules=["vendor16.ko"])
def test_other(pkvm_system):
    pkvm_system.call("hyp_call", 0x48007)
"""
    )
    vendor(source, "--pkvm-golden").assert_outcomes(passed=2)
    vendor(source, "--pkvm-golden", "-k", "other").assert_outcomes(passed=1, deselected=1)


def test_a_breach_of_a_contract_fails_the_test(vendor: Vendor) -> None:
    result = vendor(TEST.format(pages=[0x48000]), ini="pkvm_contracts = memory\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["error: share-without-pin: host_share_hyp(0x48000): *hyp/el2.c:15)*"])
    milder = vendor(TEST.format(pages=[0x48000]), "--pkvm-contracts", "share-without-pin=warning")
    milder.assert_outcomes(passed=1)
    milder.stdout.fnmatch_lines(["*= contracts =*", "test_it: warning: share-without-pin: *"])
    vendor(TEST.format(pages=[0x48000]), "--pkvm-contracts", "off").assert_outcomes(passed=1)


def test_words_that_name_no_contract_are_wrong_usage(vendor: Vendor) -> None:
    result = vendor(TEST.format(pages=[0x48000]), "--pkvm-contracts", "nothing=error")
    assert result.ret != 0
    assert "nothing=error" in result.stdout.str() + result.stderr.str()


def test_a_golden_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff")
    with pytest.raises(Exception, match="cannot be read as a golden file"):
        GoldenFiles().check(tmp_path / "x.txt", "text")


def test_names_of_tests_become_names_of_files() -> None:
    assert file_name("shares a page[android16-6.12]") == "shares-a-page-android16-6.12.txt"
    assert file_name("a/../b", "") == "a-..-b.txt"


def test_golden_files_of_tests_that_are_gone_are_named(vendor: Vendor, pytester: pytest.Pytester) -> None:
    two = TEST.format(pages=[0x48000]) + TEST.replace("test_it", "test_more").format(pages=[0x48000])
    vendor(two, "--pkvm-golden").assert_outcomes(passed=2)
    (left,) = pytester.path.glob("golden/*/test_more.txt")
    for options, is_said in (((), True), (("-k", "test_it"), True), (("-k", "nothing or test_it"), True)):
        result = vendor(TEST.format(pages=[0x48000]), "--pkvm-golden", *options)
        assert (str(left) in result.stdout.str()) == is_said
    result = vendor(two, "--pkvm-golden", "-k", "test_it")
    assert "golden files of no test" not in result.stdout.str()
