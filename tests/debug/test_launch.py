"""``--launch``: the debugger is started with everything set, here and from an installed wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pkvm_emu.debug.launch import find_program, gdb_commands, lldb_commands
from pkvm_emu.errors import UsageError

Sample = Callable[[str], Path]
HANDLER = "pkvm_driver_hyp_hvc"
needs_gdb = pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
needs_lldb = pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed")


def launch(
    module: Path, kind: str, *commands: str, cwd: Path, site: Path | None = None, options: tuple[str, ...] = ()
) -> str:
    """What ``pkvm-emu gdb --launch`` prints; ``site``: where the package is imported from."""
    words = [word for text in commands for word in ("--command", text)]
    environment = {**os.environ, "PYTHONPATH": str(site)} if site is not None else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "pkvm_emu", "gdb", str(module), "--port", "0", "--launch", kind, "--batch", *options, *words],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installation has it."""
    place = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(place)
    return place


@pytest.mark.parametrize("generation", ["14", "16"])
@needs_lldb
def test_lldb_is_attached_with_symbols_and_runs_the_commands(
    generation: str, pkvm_driver: Sample, tmp_path: Path
) -> None:
    text = launch(
        pkvm_driver(generation), "lldb", f"breakpoint set --name {HANDLER}", "continue", "bt", "thread step-out", "continue",
        cwd=tmp_path, options=("--call", f"{HANDLER}:1,2"),
    )  # fmt: skip
    assert text.startswith("stopped at EL1 init_module+0x0")
    assert re.search(rf"frame #0: 0x[0-9a-f]+ pkvm_driver\.el2\.elf`{HANDLER}\(regs=|`{HANDLER}\(ctx=", text)
    assert re.search(r"frame #1: .*`handle_host_hcall at traps\.S:\d+", text)
    assert re.search(r"frame #5: .*`pkvm_driver_init at el1\.c:\d+", text)
    assert re.search(r"stop reason = step out\n +frame #0: 0x[0-9a-f]+ hypervisor\.elf`handle_host_hcall", text)


@needs_gdb
def test_gdb_shows_the_sources_of_the_firmware_from_a_wheel(site: Path, pkvm_driver: Sample, tmp_path: Path) -> None:
    text = launch(
        pkvm_driver("16"),
        "gdb",
        f"break {HANDLER}",
        "continue",
        "finish",
        "list",
        "info source",
        "kill",
        cwd=tmp_path,
        site=site,
    )
    assert re.search(r"^handle_host_hcall \(\) at firmware/el2/traps\.S:\d+$", text, re.MULTILINE)
    assert f"Compilation directory is {site / 'pkvm_emu'}" in text
    assert re.search(r"^\d+\t        CALL_CHECKED kcfi_hcall$", text, re.MULTILINE)


@needs_lldb
def test_lldb_shows_them_too(site: Path, pkvm_driver: Sample, tmp_path: Path) -> None:
    text = launch(
        pkvm_driver("16"),
        "lldb",
        f"breakpoint set --name {HANDLER}",
        "continue",
        "finish",
        "kill",
        cwd=tmp_path,
        site=site,
    )
    assert re.search(r"^ +\d+ +\t        CALL_CHECKED kcfi_hcall", text, re.MULTILINE)


@needs_gdb
def test_sources_that_moved_are_mapped(pkvm_driver: Sample, tmp_path: Path) -> None:
    moved = tmp_path / "there" / "firmware"
    root = Path(__file__).parents[2]
    shutil.copytree(root / "firmware", moved)
    text = launch(
        pkvm_driver("16"), "gdb", "break host_exit", "continue", "info source", "kill",
        cwd=tmp_path, options=("--source-map", f"{root}={moved.parent}"),
    )  # fmt: skip
    assert f"Located in {moved / 'el2' / 'vectors.S'}" in text


def test_what_the_debuggers_are_told() -> None:
    assert gdb_commands(":1234", [("/a b", "/c")])[2:] == ['set substitute-path "/a b" /c', "target remote :1234"]
    lines = lldb_commands("/run/x.sock", ["/m.elf", "/h.elf"], [("/a", "/b")])
    assert lines[-1] == "process connect --plugin gdb-remote unix-connect:///run/x.sock"
    assert "target modules add /h.elf" in lines
    assert "settings append target.source-map /a /b" in lines
    assert lldb_commands("[::1]:5", ["/m.elf"])[-1].endswith("connect://[::1]:5")


def test_a_debugger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match="--launch lldb: none of lldb is installed"):
        find_program("lldb")
