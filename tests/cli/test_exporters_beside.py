"""``run`` takes along the module whose EL2 code a given one calls, where it lies in the same directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main

Make = Callable[..., Path]
EL1 = """
int __kvm_nvhe_hyp_init(const struct pkvm_module_ops *ops);
static unsigned long token;
static int __init half_init(void) { return pkvm_load_el2_module(__kvm_nvhe_hyp_init, &token); }
module_init(half_init);
"""
EXPORT = "u64 __kvm_nvhe_twice(u64 a);\nEXPORT_SYMBOL(__kvm_nvhe_twice);\n"
GIVER = "int hyp_init(const struct pkvm_module_ops *ops) { return 0; }\nu64 twice(u64 a) { return 2 * a; }\n"
TAKER = "u64 twice(u64 a);\nint hyp_init(const struct pkvm_module_ops *ops) { return twice(0); }\n"
#: Needs an EL1 export only: insmod says what is missing, and so does the emulator.
EL1_ONLY = "int giver_el1(void);\n" + EL1.replace("return ", "return giver_el1() ?: ")


@pytest.fixture
def directory(c_module: Make, tmp_path: Path) -> Path:
    giver = c_module(EXPORT + "int giver_el1(void);\nint giver_el1(void) { return 0; }\nEXPORT_SYMBOL(giver_el1);\n" + EL1,
                     GIVER, name="acme_giver")  # fmt: skip
    shutil.copy(giver, tmp_path / "acme-giver.ko")
    shutil.copy(c_module(EL1, TAKER, name="taker", symbols=(giver,)), tmp_path / "taker.ko")
    el1_only = c_module(EL1_ONLY, GIVER.replace("twice", "own"), name="el1only", symbols=(giver,))
    shutil.copy(el1_only, tmp_path / "el1only.ko")
    return tmp_path


def test_the_exporter_beside_is_loaded_first(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(directory / "taker.ko")]) == 0
    out = capsys.readouterr().out
    assert out.index("loaded   acme_giver") < out.index("loaded   taker")
    assert "note: acme-giver.ko is taken along: taker calls its EL2 code" in out


def test_one_that_was_given_is_not_taken_twice(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(directory / "taker.ko"), str(directory / "acme-giver.ko")]) == 0
    out = capsys.readouterr().out
    assert out.count("loaded   acme_giver") == 1
    assert "taken along" not in out


def test_without_it_the_load_fails_as_on_a_device(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "acme-giver.ko").unlink()
    assert main(["run", str(directory / "taker.ko")]) == 1
    assert "unknown symbol __kvm_nvhe_twice" in capsys.readouterr().err


def test_el1_exports_are_no_reason_to_take_a_module_along(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(directory / "el1only.ko")]) == 1
    assert "unknown symbol giver_el1" in capsys.readouterr().err
