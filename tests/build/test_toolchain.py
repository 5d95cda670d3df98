"""The compiler is found, probed, and replaced by a lesser one only with a note."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pkvm_emu.build import toolchain
from pkvm_emu.build.builder import build_module
from pkvm_emu.build.report import ToolError, first_error
from pkvm_emu.build.toolchain import KCFI, KCFI_NORMALIZE, Toolchain, find_toolchain
from pkvm_emu.errors import UsageError


@pytest.fixture(scope="session")
def real() -> Toolchain:
    return find_toolchain()


@pytest.fixture
def fake_clang(tmp_path: Path, real: Toolchain, monkeypatch: pytest.MonkeyPatch):
    """Puts a clang on PATH that refuses some flags, and an ld.lld; the names that they were given."""

    def install(*refused: str, clang: str = "clang", lld: str = "ld.lld") -> None:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        patterns = "|".join(f"*{flag}*" for flag in refused) or "--no-such-flag"
        check = f'for word; do case "$word" in {patterns}) echo "error: unknown $word" >&2; exit 1;; esac; done\n'
        for name, text in (
            (clang, f'#!/bin/sh\n{check}exec {shlex.join(real.clang)} "$@"\n'),
            (lld, f'#!/bin/sh\nexec {shlex.join(real.lld)} "$@"\n'),
        ):
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(directory))
        monkeypatch.delenv("PKVM_EMU_CLANG", raising=False)

    return install


def test_a_system_clang_is_preferred(fake_clang) -> None:
    fake_clang()
    assert find_toolchain().name == "clang"


def test_a_system_clang_with_a_version_in_its_name_is_found(fake_clang) -> None:
    fake_clang(clang="clang-19", lld="ld.lld-19")
    found = find_toolchain()
    assert (Path(found.clang[0]).name, Path(found.lld[0]).name) == ("clang-19", "ld.lld-19")


def test_a_system_clang_without_kcfi_yields_to_a_better_one(fake_clang) -> None:
    pytest.importorskip("ziglang")
    fake_clang("-fsanitize")
    assert find_toolchain().name == "ziglang"


def test_a_clang_that_cannot_compile_for_aarch64_is_passed_over(fake_clang, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clang("--target=aarch64")
    monkeypatch.setattr(toolchain, "_ziglang", lambda: None)
    with pytest.raises(UsageError, match="no compiler for AArch64: install clang and lld"):
        find_toolchain()


def test_a_program_that_is_named_and_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKVM_EMU_CLANG", "no-such-clang")
    with pytest.raises(UsageError, match="no-such-clang is not a program"):
        find_toolchain()


def test_flags_are_probed_with_the_compiler(real: Toolchain) -> None:
    assert real.supports("-O2")
    assert real.supports(KCFI, KCFI_NORMALIZE)
    assert not real.supports("-fno-such-flag-exists")


@pytest.mark.parametrize(
    ("refused", "generation", "note"),
    [
        ("-fsanitize=kcfi", "android15-6.6", "has no kCFI: type ids are left out"),
        ("normalize-integers", "android16-6.12", "cannot normalise kCFI type ids: kCFI is left out"),
        ("stack-protector-guard", "android16-6.12", "no stack protector at EL1"),
    ],
)
def test_what_the_compiler_lacks_is_left_out_with_a_note(
    fake_clang, sample: Path, monkeypatch: pytest.MonkeyPatch, refused: str, generation: str, note: str
) -> None:
    fake_clang(refused)
    monkeypatch.setenv("PKVM_EMU_CLANG", "clang")
    result = build_module(sample, None, generation)
    assert note in result.log
    assert ELFFile(result.path.open("rb")).get_section_by_name(".hyp.text")["sh_size"] == 4096


def test_a_failing_linker_gives_its_first_line(real: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"cannot open .*gone\.o") as caught:
        real.link(["-r", str(tmp_path / "gone.o"), "-o", str(tmp_path / "x.o")])
    assert caught.value.command[-1].endswith("x.o")


def test_the_first_error_is_found_among_warnings_and_include_chains() -> None:
    output = "a.c:1:2: warning: w\nIn file included from a.c:3:\n./b.h:4:5: error: bad thing\nc.c:1:1: error: later\n"
    assert first_error(output) == "./b.h:4:5: bad thing"
    assert first_error("all is well\n") is None
