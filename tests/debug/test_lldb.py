"""The real lldb, in batch mode, on the documented sample."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, run_lldb

Sample = Callable[[str], Path]
pytestmark = pytest.mark.skipif(shutil.which("lldb") is None, reason="lldb is not installed")
HANDLER = "pkvm_driver_hyp_hvc"


@pytest.fixture(params=["14", "16"])
def run(request: pytest.FixtureRequest, pkvm_driver: Sample, tmp_path: Path) -> Callable[..., str]:
    """Serves the sample and gives lldb the commands."""

    def execute(*commands: str) -> str:
        symbols = tmp_path / "symbols"
        arguments = ["--call", f"{HANDLER}:1,2", "--call", f"{HANDLER}:3,4", "--symbols", str(symbols)]
        with Server(str(pkvm_driver(request.param)), *arguments) as server:
            return run_lldb(server.port, symbols, commands, tmp_path)

    return execute


def frames(text: str) -> list[str]:
    """The functions of the last backtrace, innermost first."""
    found = re.findall(r"^  [* ] frame #(\d+): 0x[0-9a-f]+ [\w.-]+`(.+?)(?:\(| \+| at|$)", text, re.MULTILINE)
    last = max(index for index, (number, _) in enumerate(found) if number == "0")
    return [name.rpartition("] ")[2] for _, name in found[last:]]


def test_the_journey_of_a_hypercall(run: Callable[..., str]) -> None:
    text = run(f"breakpoint set --name {HANDLER}", "continue", "bt", "register read HCR_EL2 TTBR0_EL2", "kill")
    assert "stop reason = breakpoint 1.1" in text
    assert frames(text) == [
        HANDLER, "handle_host_hcall", "handle_trap", "host_exit", "_pkvm_emu_hvc", "pkvm_driver_init", "called_from_python",
    ]  # fmt: skip
    assert re.search(r"TTBR0_EL2 = 0x000000007f", text)


def test_steps_and_step_out_cross_the_levels(run: Callable[..., str]) -> None:
    text = run(
        "breakpoint set --name host_hvc", "continue", *["thread step-inst"] * 3, "breakpoint disable 1",
        f"breakpoint set --name {HANDLER}", "continue", "breakpoint disable 2", "thread step-out", "thread step-out", "bt", "kill",
    )  # fmt: skip
    first = text[: text.index(f"(lldb) breakpoint set --name {HANDLER}")]
    assert "hypervisor.elf`host_exit" in first
    assert "stop reason = step out" in text
    assert frames(text)[:2] == ["handle_trap", "host_exit"]


def test_watchpoint_memory_and_registers(run: Callable[..., str]) -> None:
    text = run(
        f"breakpoint set --name {HANDLER}", "continue", "watchpoint set variable calls", "continue", "watchpoint delete --force",
        "register write x9 0x1234", "register read x9", "register write TPIDR_EL1 0x40", "register read TPIDR_EL1",
        "memory region $pc", "kill",
    )  # fmt: skip
    assert "stop reason = watchpoint 1" in text
    assert re.search(r"old value: 0\s+new value: 1", text)
    assert "x9 = 0x0000000000001234" in text
    assert "TPIDR_EL1 = 0x0000000000000040" in text
    assert re.search(r"r-x pkvm_driver", text)


def test_monitor_commands(run: Callable[..., str]) -> None:
    text = run("process plugin packet monitor el", "kill")
    answer = re.search(r"response: ([0-9a-f]+)", text)
    assert answer is not None
    assert bytes.fromhex(answer[1]).decode().startswith("CPU 0: EL1 init_module+0x0")
