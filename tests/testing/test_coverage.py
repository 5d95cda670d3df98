"""Coverage of module code: under pytest, with several processes, and by pkvm-emu test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main
from pkvm_emu.testing.coverage import drcov, lcov
from pkvm_emu.testing.coverage.model import Coverage, Function, Half, LineRow, ModuleCoverage
from pkvm_emu.testing.coverage.output import is_enough, table

Vendor = Callable[..., pytest.RunResult]
TESTS = """
import pytest
pytestmark = pytest.mark.pkvm(modules=["vendor16.ko"])

def test_one(pkvm_system):
    pkvm_system.call("hyp_call", 0x48000)

def test_two(pkvm_system):
    with pytest.raises(Exception):
        pkvm_system.call("hyp_call", 666)
"""


def made() -> Coverage:
    """One module: a function of four instructions on two lines, of which the first two ran three times; one that never ran."""
    half = Half(
        0x400008400000,
        0x1000,
        [Function("handler", 0, 16), Function("unused", 16, 8)],
        [LineRow(0, "hyp/el2.c", 10), LineRow(8, "hyp/el2.c", 11), LineRow(16, "hyp/el2.c", 20), LineRow(24, "", 0)],
        {0: (8, 3)},
    )
    return Coverage({"d1": ModuleCoverage("my-module", "my.ko", "d1", {2: half})})


def test_lcov_has_lines_and_functions_with_their_counts() -> None:
    assert lcov.write(made()).splitlines() == [
        "TN:my_module",
        "SF:hyp/el2.c",
        "FN:10,handler",
        "FN:20,unused",
        "FNDA:3,handler",
        "FNDA:0,unused",
        "FNF:2",
        "FNH:1",
        "DA:10,3",
        "DA:11,0",
        "DA:20,0",
        "LF:3",
        "LH:1",
        "end_of_record",
    ]


def test_drcov_has_the_blocks_by_their_offset_from_where_the_half_was_loaded() -> None:
    (module,) = made().modules.values()
    head, _, table_ = drcov.write(module).partition(b"BB Table: 1 bbs\n")
    assert head.startswith(b"DRCOV VERSION: 2\nDRCOV FLAVOR: pkvm-emu\nModule Table: version 2, count 1\n")
    assert b"0x0000400008400000, 0x0000400008401000" in head
    assert struct.unpack("<IHH", table_) == (0, 8, 0)


def test_merging_adds_counts_and_keeps_two_builds_apart() -> None:
    both = made()
    both.merge(Coverage.from_dict(json.loads(json.dumps(made().as_dict()))))
    assert both.modules["d1"].halves[2].blocks == {0: (8, 6)}
    other = made()
    other.modules["d2"] = other.modules.pop("d1")
    both.merge(other)
    assert set(both.modules) == {"d1", "d2"}


def test_the_share_is_that_of_the_instructions_of_el2_functions() -> None:
    assert made().percent() == pytest.approx(100 * 2 / 6)
    assert is_enough(made(), 33)[0]
    assert not is_enough(made(), 34)[0]
    assert list(table(made())) == [
        "my-module                EL2   33.3 %  2 of 6 instructions, 1 of 2 functions  (my.ko, d1)",
    ]


def test_pytest_collects_over_all_tests_and_processes(vendor: Vendor, pytester: pytest.Pytester) -> None:
    for number, options in enumerate(((), ("-n", "2"))):
        result = vendor(TESTS, f"--pkvm-cov=cov{number}", *options)
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(["*coverage of module code*", "vendor * EL2   97.4 % * 2 of 2 functions *"])
    texts = [(pytester.path / f"cov{number}" / "lcov.info").read_text() for number in (0, 1)]
    assert "FNDA:" in texts[0]
    assert [line for line in texts[0].splitlines() if line[:2] in ("SF", "LF", "LH")] == [
        line for line in texts[1].splitlines() if line[:2] in ("SF", "LF", "LH")
    ]
    assert len(list((pytester.path / "cov0").glob("vendor-*.drcov"))) == 1


def test_too_little_coverage_fails_the_run(vendor: Vendor) -> None:
    only_one = TESTS.split("def test_two", maxsplit=1)[0]
    result = vendor(only_one, "--pkvm-cov-fail-under=95")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["coverage of EL2 code is * %, less than the required 95 %"])
    assert vendor(TESTS, "--pkvm-cov-fail-under=95").ret == 0


CASES = """
modules = ["vendor.ko"]
[[case]]
name = "a"
step = [{ hvc = "hyp_call", args = [1] }]
[[case]]
name = "b"
step = [{ hvc = "hyp_call", args = [2] }]
"""
EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
static noinline u64 one(u64 x) { return x * 3; }
static noinline u64 two(u64 x) { return x * 5; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	x[2] = x[1] == 1 ? one(x[2]) : two(x[2]);
}
"""


def test_shards_and_processes_give_the_same_coverage_as_one_run(
    tmp_path: Path, c_module: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vendor.ko").write_bytes(c_module(el2=EL2, name="vendor").read_bytes())
    (tmp_path / "a.pkvm.toml").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--cov", "whole"]) == 0
    assert "EL2  100.0 %" in capsys.readouterr().out
    assert main(["test", "--cov", "split", "-n", "2"]) == 0
    for part in ("1/2", "2/2"):
        assert main(["test", "--cov", f"part{part[0]}", "--shard", part, "--results", f"{part[0]}.json"]) == 0
    assert main(["test", "--merge", "1.json", "--merge", "2.json", "--cov", "merged"]) == 0

    def lines(name: str) -> list[str]:
        text = (tmp_path / name / "lcov.info").read_text()
        return [
            line if line[:2] != "DA" else line.partition(",")[0] + str(line.endswith(",0"))
            for line in text.splitlines()
        ]

    whole = [line for line in lines("whole") if not line.startswith("FNDA")]
    for name in ("split", "merged"):
        assert [line for line in lines(name) if not line.startswith("FNDA")] == whole
    capsys.readouterr()
    assert main(["test", "-k", "a", "--cov-fail-under", "100"]) == 1
    assert "less than the required 100 %" in capsys.readouterr().out
