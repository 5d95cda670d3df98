"""``step``, ``next`` and ``finish`` across the levels, with the real debuggers: an HVC is a call into the hypervisor's source."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, run_gdb, run_lldb

Sample = Callable[[str], Path]
HANDLER = "pkvm_driver_hyp_hvc"
needs_gdb = pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
needs_lldb = pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed")


@pytest.fixture(params=["14", "16"])
def module(request: pytest.FixtureRequest, pkvm_driver: Sample) -> Path:
    """The sample for the oldest and the newest generation."""
    return pkvm_driver(request.param)


def functions_of(text: str) -> list[str]:
    """The functions that gdb says it has come into, in their order."""
    return re.findall(r"^(?:0x[0-9a-f]+ in )?(\w+) \(.*\)(?: at \S+:\d+)?$", text, re.MULTILINE)


@needs_gdb
def test_step_goes_from_the_hvc_through_the_hypervisor_into_the_handler(module: Path, tmp_path: Path) -> None:
    commands = [
        "monitor break hvc 128", "continue", "monitor break hvc off", "step", "bt 2", "set $steps = 1",
        f"while !$_any_caller_is(\"{HANDLER}\", 0) && $steps < 150\n"
        "step\nset $steps = $steps + 1\nend", "print $steps", "bt", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    passed = [name for name in dict.fromkeys(functions_of(text)) if name != "_pkvm_emu_hvc"]
    first = passed.index("vector_host_sync")
    assert passed[first : first + 3] == ["vector_host_sync", "host_exit", "save_keys"]
    assert passed[-3:] == ["handle_trap", "handle_host_hcall", HANDLER]
    assert re.search(r"^#0  vector_host_sync \(\) at firmware/el2/vectors\.S:\d+$", text, re.MULTILINE)
    assert re.search(r"^\d+\t +stp +x0, x1, \[sp, #-16\]!$", text, re.MULTILINE)
    last = text[text.rindex("#0 ") :]
    assert re.findall(r"(\w+) \(.*at firmware/el2", last) == ["handle_host_hcall", "handle_trap", "host_exit"]
    assert re.search(r"pkvm_driver_init \(\) at .*el1\.c:\d+", last)


@needs_gdb
def test_next_and_finish_go_over_the_hypercall(module: Path, tmp_path: Path) -> None:
    commands = [
        "monitor break hvc 128", "continue", "monitor break hvc off", "set $before = $pc", "next", "print ($cpsr & 12) == 4",
        "print $pc > $before", "print $x0", "bt 1", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert re.findall(r"^\$\d+ = (\S+)", text, re.MULTILINE)[:2] == ["1", "1"]
    assert "vector_host_sync" not in text
    commands = [
        "monitor break hvc 128", "continue", "monitor break hvc off", "stepi", "print ($cpsr & 12) == 8", "finish",
        "print ($cpsr & 12) == 4", "bt 1", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert re.findall(r"^\$\d+ = (\S+)", text, re.MULTILINE) == ["1", "1"]
    assert re.search(r"^#0  \w+ in _pkvm_emu_hvc|^#0  pkvm_driver_init", text, re.MULTILINE)


@needs_gdb
def test_the_way_back_is_stepped_too(module: Path, tmp_path: Path) -> None:
    commands = [
        f"tbreak {HANDLER}", "continue", "finish", "print 1", *["next"] * 6, "set $steps = 0",
        "while ($cpsr & 12) == 8 && $steps < 120\nstep\nset $steps = $steps + 1\nend", "print 2", "bt", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    middle = text[text.index("$1 = 1") : text.index("$2 = 2")]
    assert functions_of(middle)[:2] == ["handle_trap", "host_exit"]
    assert "eret" in middle
    assert re.search(r"^#\d+  pkvm_driver_init \(\) at .*el1\.c:\d+", text[text.index("$2 = 2") :], re.MULTILINE)


@needs_gdb
def test_step_goes_over_what_python_serves(module: Path, tmp_path: Path) -> None:
    commands = [
        "break pkvm_driver_init", "continue", "delete", "set $steps = 0",
        "while $steps < 3\nstep\nset $steps = $steps + 1\nend", "bt 1", "print 1",
        f"tbreak {HANDLER}", "continue", "step", "step", "print 2", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    # __pkvm_load_el2_module() with the hypercalls that it makes, and ops->puts(), are one step each.
    assert functions_of(text[: text.index("$1 = 1")])[-1] == "pkvm_driver_init"
    assert not re.search(r"firmware/el1\.S", text)
    assert "pkvm_ops_puts" not in text
    assert "hypercall at EL2" in text[: text.index("$2 = 2")]


@needs_lldb
def test_lldb_steps_into_the_hypervisor_and_out_of_it(module: Path, tmp_path: Path) -> None:
    symbols = tmp_path / "symbols"
    commands = [
        "process plugin packet monitor break hvc 128", "continue", "process plugin packet monitor break hvc off",
        "thread step-in", "bt", "thread step-in", "thread step-in", "bt", "thread step-out", "bt", "kill",
    ]  # fmt: skip
    with Server(str(module), "--symbols", str(symbols)) as server:
        text = run_lldb(server.port, symbols, commands, tmp_path)
    stacks = [
        re.findall(r"frame #\d+: 0x[0-9a-f]+ [\w.-]+`(?:pkvm_driver_init \[inlined\] )?(\w+)", part)
        for part in text.split("(lldb) bt\n")[1:]
    ]
    upper = ["_pkvm_emu_hvc", "pkvm_driver_init", "called_from_python"]
    assert stacks[0][:4] == ["vector_host_sync", *upper]
    assert stacks[1][:4] == ["host_exit", *upper]
    assert stacks[2][:3] == upper
    assert re.search(r"vector_host_sync at vectors\.S:\d+", text)
    assert re.search(r"^-> \d+\s+stp +x0, x1, \[sp, #-16\]!", text, re.MULTILINE)


@needs_lldb
def test_lldb_stops_at_the_first_instruction_of_a_function_of_the_hypervisor(module: Path, tmp_path: Path) -> None:
    symbols = tmp_path / "symbols"
    with Server(str(module), "--symbols", str(symbols)) as server:
        text = run_lldb(server.port, symbols, ["breakpoint set --name host_hvc", "continue", "kill"], tmp_path)
    assert re.search(r"where = [\w.-]+`host_hvc at el1\.S:\d+", text)
    assert re.search(r"-> \d+\s+hvc +#0", text)
