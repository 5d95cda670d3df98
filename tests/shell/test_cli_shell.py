"""``pkvm-emu shell``: scripts from files and standard input, exit codes, what ends a system."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pkvm_emu.cli.main import main


def run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(script.encode())))
    status = main(["shell", *arguments, "--script", "-"])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def test_a_protected_module_is_loaded_at_boot(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, knobs_path: Path
) -> None:
    status, out, err = run(
        capfd, monkeypatch, "cat /sys/module/knobs/parameters/level; dmesg -t | grep knobs:", str(knobs_path),
        "--android", "16", "--cmdline", "knobs.level=8",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert out == "8\nknobs: loading out-of-tree module taints kernel.\nknobs: level 8\n"


def test_modprobe_finds_a_given_module_that_was_not_loaded(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, knobs_path: Path
) -> None:
    script = "ls /sys/module /lib/modules; modprobe knobs level=2; cat /sys/module/knobs/parameters/level"
    status, out, _ = run(
        capfd, monkeypatch, script, str(knobs_path), "--android", "16", "--cmdline", "kvm-arm.protected_modules="
    )
    assert (status, out) == (0, "/lib/modules:\nknobs.ko\n\n/sys/module:\n2\n")


def test_the_exit_code_is_that_of_the_script(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(capfd, monkeypatch, "false; exit 5; echo no") == (5, "", "")
    path = tmp_path / "s.sh"
    path.write_text("echo from file\nfalse\n")
    assert main(["shell", "--script", str(path)]) == 1
    assert capfd.readouterr().out == "from file\n"


def test_an_oops_ends_with_1_the_log_and_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, knobs_path: Path
) -> None:
    script = "echo before; echo 1 > /sys/module/knobs/parameters/crash; echo after"
    status, out, err = run(capfd, monkeypatch, script, str(knobs_path), "--android", "16")
    assert (status, out) == (1, "before\n")
    lines = err.splitlines()
    assert any(line.startswith("[") and "NULL pointer dereference" in line for line in lines)
    assert lines[-1].startswith("pkvm-emu: Unable to handle kernel NULL pointer dereference")


def test_console_prints_the_log_as_it_comes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = run(
        capfd, monkeypatch, "echo hi; echo '<5>seen' > /dev/kmsg; echo '<7>not' > /dev/kmsg", "--console"
    )
    assert (status, out) == (0, "hi\n")
    assert err.splitlines()[-1].endswith("] seen")
    assert "not" not in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["/none.ko"], ["--machine", "warp"], ["--script", "/none.sh"]])
def test_wrong_usage_is_one_line_and_2(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    script = [] if "--script" in arguments else ["--script", "/dev/null"]
    assert main(["shell", *arguments, *script]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
