"""What breaks on another generation, by op and call site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main
from pkvm_emu.elf.module_file import ModuleFile
from pkvm_emu.inspect.abi import abi_breaks

EL2 = """
static const struct pkvm_module_ops *o;
int hyp_init(const struct pkvm_module_ops *ops) { o = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs)
{
	u64 *x = (u64 *)regs;
	x[0] = 0;
	o->puts("here");
	x[1] = (u64)(long)o->host_share_hyp(x[1]);
	x[2] = (u64)o->hyp_alloc(x[2]);
}
"""


@pytest.fixture(scope="module")
def module(c_module: Callable[..., Path]) -> Path:
    return c_module(el2=EL2, name="abi", generation="15")


def test_ops_that_moved_and_ops_that_are_missing_are_named_with_their_call_sites(module: Path) -> None:
    found = {(one.kind, one.member): one for one in abi_breaks(ModuleFile.load(module), "14")}
    moved = found["moved", "puts"]
    assert "is at 0x20 in android14-6.1 and not at 0x28; the call reaches putx64" in moved.text
    assert moved.places[0].startswith("hyp_call+")
    assert "android14-6.1 has none" in found["missing", "hyp_alloc"].text
    assert found["handler", "user_pt_regs"].places[0].startswith("hyp_call by")
    assert "has 512 bytes in android14-6.1, 688 in android15-6.6" in found["struct", "struct pkvm_module_ops"].text
    assert ("kcfi", "type ids") in found


def test_on_its_own_generation_nothing_breaks(module: Path) -> None:
    assert abi_breaks(ModuleFile.load(module), 15) == []


def test_what_did_not_move_is_no_break(module: Path) -> None:
    kinds = {one.member: one.kind for one in abi_breaks(ModuleFile.load(module), 16)}
    assert "puts" not in kinds
    assert kinds["host_share_hyp"] == "moved"


def test_inspect_prints_breaks_and_its_exit_code_tells(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(module), "--abi", "15"]) == 0
    assert "abi on android15-6.6: no ABI breaks" in capsys.readouterr().out
    assert main(["inspect", str(module), "--abi", "all", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["abi"]
    assert [row["android"] for row in rows] == ["android14-5.15", "android14-6.1", "android15-6.6", "android16-6.12"]


def test_run_on_all_generations_says_what_became_of_the_call_on_each(
    module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(module), "--android", "all", "--call", "hyp_call:0x48000", "--json"]) == 1
    ran = {entry["android"]: entry for entry in json.loads(capsys.readouterr().out)["generations"]}
    assert ran["android15-6.6"]["calls"][0]["x0"] == 0
    assert ran["android15-6.6"]["abi_breaks"] == []
    assert any(one["member"] == "host_share_hyp" for one in ran["android16-6.12"]["abi_breaks"])
