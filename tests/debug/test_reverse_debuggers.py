"""The real gdb and lldb going back, on the documented sample of the oldest and the newest kernel."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, run_gdb, run_lldb

Sample = Callable[[str], Path]
HANDLER = "pkvm_driver_hyp_hvc"
CALLS = ("--call", f"{HANDLER}:1,2", "--call", f"{HANDLER}:3,4")
needs_gdb = pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
needs_lldb = pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed")


@pytest.fixture(params=["14", "16"])
def module(request: pytest.FixtureRequest, pkvm_driver: Sample) -> Path:
    """The sample for the oldest and the newest generation."""
    return pkvm_driver(request.param)


@needs_gdb
def test_gdb_steps_back_from_el2_to_el1_and_forward_again(module: Path, tmp_path: Path) -> None:
    commands = [
        f"break *{HANDLER}", "continue", "set $there = $pc", "set $steps = 0",
        "while ($cpsr & 12) == 8\nreverse-stepi\nset $steps = $steps + 1\nend",
        "print $cpsr & 12", "bt 1", "x/i $pc", "set $way = $steps", "delete",
        "while $steps > 0\nstepi\nset $steps = $steps - 1\nend",
        "print $pc == $there", "print $way > 20", "kill",
    ]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "$1 = 4" in text
    assert re.search(r"=> 0x[0-9a-f]+ <pkvm_driver_init.*>:\thvc\t#0x0", text)
    assert "$2 = 1" in text
    assert "$3 = 1" in text


@needs_gdb
def test_gdb_goes_back_to_breakpoints_and_to_the_beginning(module: Path, tmp_path: Path) -> None:
    value = "print ((unsigned long *)$x0)[1]"
    commands = [f"break *{HANDLER}", "continue", "continue", "continue", value, "reverse-continue", value,
                "reverse-continue", value, "reverse-continue", "bt 1", "continue", value, "kill"]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert re.findall(r"^\$\d = (\d+)$", text, re.MULTILINE) == ["3", "1", "40", "40"]
    assert "No more reverse-execution history." in text
    assert re.search(r"^#0  pkvm_driver_init \(\)", text, re.MULTILINE)


@needs_gdb
def test_gdb_finds_the_last_write(module: Path, tmp_path: Path) -> None:
    commands = [f"break *{HANDLER}", "continue", "continue", "continue", "print calls", "watch calls", "disable 1",
                "reverse-continue", "bt 1", "x/i $pc", "reverse-continue", "continue", "kill"]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "$1 = 2" in text
    assert "Old value = 2\nNew value = 1" in text
    assert "Old value = 1\nNew value = 0" in text
    assert "Old value = 0\nNew value = 1" in text
    assert re.search(r"^#0 .*pkvm_driver_hyp_hvc .*el2\.c", text, re.MULTILINE)
    assert re.search(r"=> 0x[0-9a-f]+ <pkvm_driver_hyp_hvc.*>:\tstr\t", text)


@needs_gdb
def test_gdb_goes_back_over_lines_and_out_of_functions(module: Path, tmp_path: Path) -> None:
    commands = [f"break {HANDLER}", "continue", "next", "next", "info line", "reverse-next", "info line", "reverse-step",
                "delete", "reverse-finish", "x/i $pc", "bt 1", "kill"]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    lines = [int(line) for line in re.findall(r"^Line (\d+) of", text, re.MULTILINE)]
    assert len(lines) == 2
    assert lines[1] < lines[0]
    assert re.search(r"=> 0x[0-9a-f]+ <handle_host_hcall.*>:\tblr\tx9", text)


@needs_gdb
def test_gdb_asks_who_wrote_and_goes_on_where_it_was(module: Path, tmp_path: Path) -> None:
    commands = [f"break *{HANDLER}", "continue", "continue", "continue", "print/x $pc", "monitor who calls",
                "monitor who owner pkvm_ops_puts", "flushregs", "print/x $pc", "monitor history", "stepi", "kill"]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    first, second = re.findall(r"^\$\d = (0x[0-9a-f]+)$", text, re.MULTILINE)
    assert first == second
    assert re.search(rf"0x1 -> 0x2\n  at instruction \d+: EL2 __kvm_nvhe_{HANDLER}\+0x.*el2\.c:\d+", text)
    assert re.search(r"^page 0x[0-9a-f]+: ", text, re.MULTILINE)
    assert re.search(r"at instruction \d+; the history begins at 0; \d+ states? kept", text)


@needs_gdb
def test_what_gdb_writes_in_the_past_changes_the_future(module: Path, tmp_path: Path) -> None:
    commands = [f"break *{HANDLER}", "continue", "continue", "continue", "reverse-continue", "set var calls = 10",
                "continue", "print calls", "reverse-stepi", "reverse-continue", "print calls", "kill"]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert re.findall(r"^\$\d = (\d+)$", text, re.MULTILINE) == ["11", "10"]


@needs_gdb
def test_a_server_without_history_says_so(module: Path, tmp_path: Path) -> None:
    with Server(str(module), "--no-reverse") as server:
        text = run_gdb(server.port, ["monitor rsi", "reverse-stepi", "kill"], tmp_path)
    assert "Target remote does not support this command." in text
    assert "no history is kept (--no-reverse)" in text


@needs_lldb
def test_lldb_goes_back_through_monitor(module: Path, tmp_path: Path) -> None:
    monitor = "process plugin packet monitor"
    commands = [
        f"breakpoint set -n __kvm_nvhe_{HANDLER} -n {HANDLER}", "continue", "continue", f"{monitor} rsi 2", "thread step-inst",
        "thread backtrace -c 2", f"{monitor} rc", "thread step-inst", f"{monitor} history", "thread backtrace -c 2",
        f"{monitor} who calls", "process kill",
    ]  # fmt: skip
    symbols = tmp_path / "symbols"
    with Server(str(module), *CALLS, "--symbols", str(symbols), "--stop-at", HANDLER) as server:
        text = run_lldb(server.port, symbols, commands, tmp_path)
    # This lldb shows what a monitor command answers as it came.
    text = re.sub(r"^response: ([0-9a-f]+)$", lambda found: bytes.fromhex(found[1]).decode(), text, flags=re.MULTILINE)
    assert "the next step (si) goes back 2 instructions" in text
    assert "the next step (si) goes back to the last breakpoint or watchpoint" in text
    assert re.search(r"at instruction \d+; the history begins at 0", text)
    stops = [int(pc, 16) for pc in re.findall(r"^    frame #0: (0x[0-9a-f]+) ", text, re.MULTILINE)]
    at_first, first, second, undone, found = stops
    assert first == second == found
    assert undone == first - 8
    assert at_first < first
