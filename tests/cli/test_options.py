"""What every command that boots understands, and how wrong usage and output that cannot be written are answered."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from module_halves import LOADER
from pkvm_emu.cli.main import build_parser, main

BOOTING = ("run", "shell", "gdb", "step")
#: A board, firmware or kernel that one of them can have, all can have.
COMMON = (
    "android", "cmdline", "continue-on-init-failure", "dtb", "el3", "ignore-versions", "initramfs", "kernel", "load-modules",
    "machine", "mmio", "ram", "ramdisk", "smc", "smp", "stub-missing", "system",
)  # fmt: skip
SERVED = """
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
@kernel_symbol("vendor_answer")
def vendor_answer(kernel) -> int:
    return 42
@kernel_variable("vendor_count", 4)
def vendor_count(kernel) -> bytes:
    return (7).to_bytes(4, "little")
"""
ASKS = """
int vendor_answer(void);
extern u32 vendor_count;
""" + LOADER.replace("int ret =", 'pr_info("answer %d of %u\\n", vendor_answer(), vendor_count); int ret =')


def subparser(command: str) -> argparse.ArgumentParser:
    actions = build_parser()._actions  # the only way to a subcommand's parser
    choices = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    return choices[command]


@pytest.mark.parametrize("command", BOOTING)
def test_every_command_that_boots_has_the_options_of_a_system(command: str) -> None:
    known = subparser(command)._option_string_actions
    assert [name for name in COMMON if f"--{name}" not in known] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-insns", "0"], "--max-insns 0: at least one instruction has to be executed"),
        (["--call", f"f:{1 << 64}"], f"--call f:{1 << 64}: {1 << 64} does not fit in a register of 64 bits"),
        (["--ram", "16386"], "RAM of 0x400200000 bytes: it must be a multiple of 2 MiB, from 64 MiB to 16 GiB"),
        (["--kernel", "{tmp}/missing.py"], "--kernel {tmp}/missing.py: there is no such file"),
        (["--kernel", "{tmp}/bad.py"], "--kernel {tmp}/bad.py:3: ZeroDivisionError: division by zero"),
        (["--kernel", "{tmp}/exits.py"], "--kernel {tmp}/exits.py:2: SystemExit: 3"),
        (["--smc", "{tmp}/bad.py"], "--smc {tmp}/bad.py:3: ZeroDivisionError: division by zero"),
        (["--sweep", "--timeline", "t.json"], "--timeline is about one run: leave it or --sweep out"),
        (["--android", "all", "--explain"], "--explain is about one run: leave it or --android all out"),
        (["--sweep", "--dts"], "--sweep and --dts exclude each other"),
        (["--timeline", "{tmp}/x", "--html", "{tmp}/x"], "--timeline and --html {tmp}/x: one file cannot hold both"),
        (["--bogus", "5"], "unrecognized arguments: --bogus 5 (see pkvm-emu run --help)"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(
    pkvm_driver, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "bad.py").write_text("a = 1\n\n1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    assert main(["run", str(pkvm_driver("16")), *words]) == 2
    assert capsys.readouterr() == ("", f"pkvm-emu: {message.replace('{tmp}', str(tmp_path))}\n")


def test_a_file_that_is_no_device_tree_is_told_without_a_report(
    pkvm_driver, capsys: pytest.CaptureFixture[str]
) -> None:
    module = str(pkvm_driver("16"))
    assert main(["run", module, "--json", "--dtb", module]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "neither a device-tree blob" in err


def test_parameters_and_modules_may_stand_behind_options(pkvm_driver, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(pkvm_driver("16")), "--ram", "512", "call=5", "--machine", "nolse"]) == 0
    assert "hypercall(5, 0)" in capsys.readouterr().out


def test_a_word_too_long_for_a_file_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a" * 70000]) == 2
    err = capsys.readouterr().err
    assert err.endswith("...: File name too long\n")
    assert len(err) < 300


def test_a_command_line_of_any_bytes_is_passed_on(pkvm_driver, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(pkvm_driver("16")), "--json", "--cmdline", os.fsdecode(b"a=\xff")]) == 0
    assert any("a=" in line["text"] for line in json.loads(capsys.readouterr().out)["dmesg"])


def test_json_has_the_line_of_a_module_that_failed(c_module, capsys: pytest.CaptureFixture[str]) -> None:
    module = c_module(LOADER.replace("int ret =", "return -19; int ret ="), name="refusing")
    assert main(["run", str(module), "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == f"pkvm-emu: {json.loads(out)['error']}\n"
    assert "-ENODEV" in err


def pkvm_emu(*arguments: str, stdout: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a shell's redirection of its standard output."""
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "pkvm_emu", *arguments))
    return subprocess.run(f"{words} {stdout}", shell=True, text=True, capture_output=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["run"], ["run", "--json"], ["inspect"]])
def test_output_that_cannot_be_written_is_said_so(pkvm_driver, command: list[str]) -> None:
    result = pkvm_emu(*command, str(pkvm_driver("16")), stdout=">/dev/full")
    assert result.stderr == "pkvm-emu: the output cannot be written: No space left on device\n"
    assert result.returncode == 2


def test_a_closed_standard_output_is_no_error(pkvm_driver) -> None:
    result = pkvm_emu("run", str(pkvm_driver("16")), stdout=">&-")
    assert (result.returncode, result.stderr) == (0, "")


def test_symbols_of_a_file_are_served_in_one_system_only(c_module, tmp_path: Path) -> None:
    import pkvm_emu
    from pkvm_emu.kernel import registry

    (tmp_path / "own.py").write_text(SERVED)
    module = c_module(ASKS, name="asking")
    with pkvm_emu.boot(modules=[module], kernel=[tmp_path / "own.py"]) as system:
        assert "asking: answer 42 of 7" in system.dmesg
    assert registry.find_function("vendor_answer") is None
    assert registry.find_variable("vendor_count") is None
    with pytest.raises(pkvm_emu.ModuleError, match=r"vendor_\w+"):
        pkvm_emu.boot(modules=[module])


def test_a_file_stands_in_for_a_companion_and_the_report_says_so(
    c_module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SERVED.replace('"vendor_answer"', '"vendor_answer", companion="vendor_core"').replace("= 42", "= 43")
    (tmp_path / "own.py").write_text(text)
    module = c_module(ASKS, name="asking")
    assert main(["run", str(module), "--kernel", str(tmp_path / "own.py"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["served_in_place_of"] == {"vendor_answer": "vendor_core"}


def test_a_budget_ends_a_boot_from_python(pkvm_driver) -> None:
    import pkvm_emu

    with pytest.raises(pkvm_emu.ModuleError, match="the budget of 100 instructions is spent"):
        pkvm_emu.boot(modules=[pkvm_driver("16")], max_insns=100)


def test_a_shell_reports_broken_contracts_at_its_end(
    c_module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script"
    script.write_text("hvc hyp_call\n")
    source = """
static const struct pkvm_module_ops *ops_of;
int hyp_init(const struct pkvm_module_ops *ops) { ops_of = ops; return 0; }
void hyp_call(pkvm_handler_regs_t *regs) { ops_of->fixmap_map(0x48000000); ((u64 *)regs)[0] = 0; }
"""
    module = c_module(el2=source, name="leaves")
    assert main(["shell", str(module), "--script", str(script)]) == 0
    assert capfd.readouterr().err == ""
    assert main(["shell", str(module), "--script", str(script), "--contracts", "ops"]) == 1
    assert "pkvm-emu: error: fixmap-unpaired" in capfd.readouterr().err
