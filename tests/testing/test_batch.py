"""``pkvm-emu test``: case files without pytest, in several processes, in shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main
from pkvm_emu.errors import EmulatorError, UsageError
from pkvm_emu.testing.batch import Shard, find_case_files

CASES = """
modules = ["vendor16.ko"]
android = 16
[[case]]
name = "good"
[[case.step]]
hvc = "hyp_call"
args = [0x48000]
expect.x2 = 1
[[case]]
name = "bad"
[[case.step]]
hvc = "hyp_call"
args = [0x48000]
expect.x2 = 5
[[case]]
name = "later"
skip = "not written yet"
"""
EL2 = """
int hyp_init(const struct pkvm_module_ops *ops) { return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { u64 *x = (u64 *)regs; static u64 n; x[0] = 0; x[2] = ++n; }
"""


@pytest.fixture
def vendor(tmp_path: Path, c_module: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vendor16.ko").write_bytes(c_module(el2=EL2, name="vendor", generation="16").read_bytes())
    (tmp_path / "a.pkvm.toml").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_case_is_a_line_and_the_exit_code_says_that_one_failed(
    vendor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      a.pkvm.toml:4 good[android16-6.12]",
        "FAILED  a.pkvm.toml:10 bad[android16-6.12]",
        "  a.pkvm.toml:15: x2 is 0x1, expected 0x5 (SMCCC_RET_SUCCESS x1=0x48000 x2=0x1 x3=0x0)",
        "skipped a.pkvm.toml:16 later[android16-6.12]",
        "  a.pkvm.toml:16: not written yet",
        "3 cases: 1 passed, 1 failed, 1 skipped",
    ]


def test_cases_are_chosen_by_name_and_generation(vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "-k", "good", "--android", "16"]) == 0
    assert capsys.readouterr().out.endswith("1 cases: 1 passed\n")
    assert main(["test", "-k", "nothing"]) == 2
    assert "no case is left" in capsys.readouterr().err


def test_shards_are_disjoint_and_merge_to_the_whole(vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("1/2", "2/2"):
        main(["test", "--shard", part, "--results", f"{part[0]}.json"])
    capsys.readouterr()
    assert main(["test", "--merge", "1.json", "--merge", "2.json", "--json"]) == 1
    merged = capsys.readouterr().out
    main(["test", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(merged)


def test_several_processes_give_the_same_results(vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "--json"])
    alone = capsys.readouterr().out
    main(["test", "--json", "-n", "2"])
    assert capsys.readouterr().out == alone


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_run(
    vendor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (vendor / "b.pkvm.toml").write_text("case = 1\n")
    assert main(["test", "-q", "-k", "good"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "ERROR   b.pkvm.toml:1 b.pkvm.toml",
        "  b.pkvm.toml:1: case: 1 is not of type 'array'",
        "2 cases: 1 passed, 1 error",
    ]


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "a/b", "1/0"])
def test_a_shard_is_one_of_so_many(text: str) -> None:
    with pytest.raises(UsageError, match="write I/N"):
        Shard.parse(text)


def test_places_without_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \*\.pkvm\.toml file"):
        find_case_files([tmp_path])
    with pytest.raises(UsageError, match="no such file"):
        find_case_files([tmp_path / "x"])


def test_results_of_something_else_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text('{"format": "other"}')
    assert main(["test", "--merge", str(tmp_path / "x.json")]) == 2
    assert "no results of pkvm-emu test" in capsys.readouterr().err


def test_a_failure_on_another_generation_names_what_broke(vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CASES.replace("android = 16\n", "")
    (vendor / "a.pkvm.toml").write_text(text.replace("expect.x2 = 1", "expect.ops.puts = 0"))
    assert main(["test", "-k", "good", "--android", "all"]) == 1
    out = capsys.readouterr().out
    assert "ABI break of vendor on android15-6.6: struct " in out
    assert "ABI break of vendor on android16-6.12" not in out


def test_what_the_system_did_is_printed_on_request(vendor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "-k", "bad", "-v"])
    out = capsys.readouterr().out
    assert "  dmesg of vendor on android16-6.12:\n    [    0.000000] kvm [0]: Reserved" in out


def test_the_exit_code_says_what_kind_of_end_it_was(
    vendor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (vendor / "good.pkvm.toml").write_text('[[case]]\nname = "good"\n')
    (vendor / "bad.pkvm.toml").write_text('[[case]]\nname = "bad"\n[[case.step]]\nsmc = 1\nexpect.x0 = 5\n')
    (vendor / "wrong.pkvm.toml").write_text('[[case]]\nname = "wrong"\nmodules = 3\n')
    codes = {name: main(["test", str(vendor / f"{name}.pkvm.toml")]) for name in ("good", "bad", "wrong")}
    assert codes == {"good": 0, "bad": 1, "wrong": 2}
    assert main(["test", str(vendor / "nowhere")]) == 2
    assert main(["test", str(vendor), "--contracts", "everything"]) == 2

    def breaks(*_: object) -> None:
        raise EmulatorError("out of order")

    monkeypatch.setattr("pkvm_emu.testing.cases.runner.run_case", breaks)
    assert main(["test", str(vendor / "good.pkvm.toml")]) == 3
    assert "out of order" in capsys.readouterr().err
