"""The real gdb, in batch mode, on the documented sample: both halves, across the hypercall, on the oldest and the newest kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, run_gdb

Sample = Callable[[str], Path]
pytestmark = pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")
HANDLER = "pkvm_driver_hyp_hvc"
CALLS = ("--call", f"{HANDLER}:1,2", "--call", f"{HANDLER}:3,4")


@pytest.fixture(params=["14", "16"])
def module(request: pytest.FixtureRequest, pkvm_driver: Sample) -> Path:
    """The sample for the oldest and the newest generation."""
    return pkvm_driver(request.param)


def frames(text: str) -> list[str]:
    """The functions of the last backtrace in gdb's output, innermost first."""
    lines = re.findall(r"^#(\d+) +(?:0x[0-9a-f]+ )?(?:\[PAC\] )?(?:in )?(\S+) \(", text, re.MULTILINE)
    last = max(index for index, (number, _) in enumerate(lines) if number == "0")
    return [name for _, name in lines[last:]]


def test_symbols_of_both_halves_arrive_without_a_command(module: Path, tmp_path: Path) -> None:
    with Server(str(module)) as server:
        text = run_gdb(
            server.port,
            ["info sharedlibrary", f"info line {HANDLER}", "info address pkvm_driver_init", "bt", "kill"],
            tmp_path,
        )
        _, status = server.finish()
    assert "pkvm_driver_init () at" in text
    assert re.search(r"pkvm_driver\.el2\.elf", text)
    assert re.search(rf"Line \d+ of .*hyp/el2\.c.* starts at address 0x4000084.*<{HANDLER}>", text)
    assert frames(text) == ["pkvm_driver_init", "called_from_python", "pkvm_emu"]
    assert "warning: Could not" not in text
    assert status == 0


def test_the_journey_of_a_hypercall(module: Path, tmp_path: Path) -> None:
    commands = [
        f"break {HANDLER}", "continue", "bt", "info args", "print ((unsigned long *)$x0)[1]", "next", "next", "print calls",
        "finish", "finish", "finish", "finish", "bt", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    first, _, rest = text.partition("$1 = ")
    assert frames(first) == [
        HANDLER, "handle_host_hcall", "handle_trap", "host_exit", "_pkvm_emu_hvc", "pkvm_driver_init", "called_from_python",
        "pkvm_emu",
    ]  # fmt: skip
    assert re.search(r"^\w+ = 0x6c", first, re.MULTILINE)
    assert rest.startswith("40")
    assert "$2 = 1" in rest
    for place in ("handle_host_hcall ()", "handle_trap ()", "host_exit ()"):
        assert place in rest
    assert frames(rest) == ["_pkvm_emu_hvc", "pkvm_driver_init", "called_from_python", "pkvm_emu"]


def test_a_program_of_the_user_does_not_hide_the_symbols(module: Path, tmp_path: Path) -> None:
    # As VS Code does it: a file is given, and the kind of system is said to be none.
    with Server(str(module), "--symbols", str(tmp_path / "symbols")) as server:
        typed = [
            "disconnect",
            "set osabi none",
            f"file {tmp_path / 'symbols' / 'machine.elf'}",
            f"target remote :{server.port}",
        ]
        text = run_gdb(server.port, [*typed, f"break {HANDLER}", "continue", "bt", "kill"], tmp_path)
    assert frames(text)[:4] == [HANDLER, "handle_host_hcall", "handle_trap", "host_exit"]


def test_stepi_crosses_into_el2_and_back(module: Path, tmp_path: Path) -> None:
    commands = [
        "break host_hvc", "continue", "set $count = 0", "print $cpsr & 12", "stepi", "print $cpsr & 12", "bt",
        "while ($cpsr & 12) == 8\nstepi\nset $count = $count + 1\nend", "print $count > 50", "print $cpsr & 12", "bt", "kill",
    ]  # fmt: skip
    with Server(str(module), *CALLS, "--stop-at", "deprivilege") as server:
        text = run_gdb(server.port, commands, tmp_path)
    levels = re.findall(r"^\$\d+ = (\d+)$", text, re.MULTILINE)
    assert levels == ["4", "8", "1", "4"]
    middle = text[: text.index(f"${3} =")]
    assert frames(middle)[:2] == ["vector_host_sync", "host_hvc"]
    assert frames(text)[0] == "host_hvc"


def test_an_op_is_one_step_and_a_frame(module: Path, tmp_path: Path) -> None:
    commands = ["break pkvm_ops_puts", "continue", "bt", "x/3i $pc", "stepi", "stepi", "bt", "kill"]
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    first = text[: text.index("=>")]
    assert frames(first)[:3] == ["pkvm_ops_puts", "pkvm_driver_hyp_init", "handle_host_hcall"]
    # The hypercall comes from a kernel function in Python, which the backtrace goes through.
    assert frames(first)[-5:] == [
        "called_from_python",
        "__pkvm_load_el2_module",
        "pkvm_driver_init",
        "called_from_python",
        "pkvm_emu",
    ]
    assert "hvc\t#0x8000" in text


def test_watchpoints_see_writes_and_reads(module: Path, tmp_path: Path) -> None:
    commands = [f"break {HANDLER}", "continue", "watch calls", "continue", "delete", "rwatch calls", "continue", "kill"]
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "Hardware watchpoint 2: calls\n\nOld value = 0\nNew value = 1" in text
    assert "Hardware read watchpoint 3: calls\n\nValue = 1" in text


def test_registers_and_memory_are_written(module: Path, tmp_path: Path) -> None:
    commands = [
        f"break *{HANDLER}", "continue", "set var ((unsigned long *)$x0)[1] = 1000", "print $TPIDR_EL2 == $x0",
        "print/x $TPIDR_EL1", "set $TPIDR_EL1 = 0x1230", "print/x $TPIDR_EL1", "info registers HCR_EL2",
        "delete", "finish", "print ((unsigned long *)$x19)[1]", "kill",
    ]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "$1 = 1" in text
    assert "$3 = 0x1230" in text
    assert re.search(r"HCR_EL2 .*\[.*RW E2H", text)
    assert "$4 = 1003" in text


def test_code_that_is_written_is_executed(module: Path, tmp_path: Path) -> None:
    # mov x0, #7; ret in place of the handler: x0 of the caller stays what it was.
    commands = [
        f"break *{HANDLER}", "continue", "set var *(unsigned *)$pc = 0xd28000e0", "set var *(unsigned *)($pc + 4) = 0xd65f03c0",
        "set $lr = $x30", "stepi", "print $x0", "stepi", "print $pc == $lr", "kill",
    ]  # fmt: skip
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "$1 = 7" in text
    assert "$2 = 1" in text


def test_detach_leaves_the_run_where_it_is(module: Path, tmp_path: Path) -> None:
    with Server(str(module), *CALLS) as server:
        first = run_gdb(server.port, [f"break {HANDLER}", "continue", "detach"], tmp_path)
        second = run_gdb(
            server.port,
            ["bt 1", f"break {HANDLER}", "continue", "print ((unsigned long *)$x0)[1]", "delete", "continue"],
            tmp_path,
        )
        output, status = server.finish()
    assert f"Breakpoint 1, {HANDLER}" in first
    assert f"#0  {HANDLER}" in second
    assert "$1 = 1" in second
    assert "exited normally" in second
    assert f"{HANDLER}:3,4 = SMCCC_RET_SUCCESS" in output
    assert status == 0


def test_a_killed_gdb_leaves_the_run_stopped(module: Path, tmp_path: Path) -> None:
    with Server(str(module), *CALLS) as server:
        script = tmp_path / "hang.gdb"
        script.write_text(f"set confirm off\ntarget remote :{server.port}\nbreak {HANDLER}\ncontinue\nshell sleep 60\n")
        gdb = subprocess.Popen(
            ["gdb-multiarch", "-nx", "-q", "-batch", "-x", str(script)], stdout=subprocess.PIPE, text=True
        )
        assert gdb.stdout is not None
        while "Breakpoint 1, " not in gdb.stdout.readline():
            pass
        gdb.kill()
        gdb.communicate()
        text = run_gdb(server.port, ["bt 1", "kill"], tmp_path)
    assert f"#0  {HANDLER}" in text


def test_ctrl_c_stops_a_loop(c_module: Callable[..., Path], tmp_path: Path) -> None:
    module = c_module(
        el2="""
static const struct pkvm_module_ops *ops;
int hyp_init(const struct pkvm_module_ops *given) { ops = given; return 0; }
/* Calls of an op are progress, so nobody takes the loop for endless. */
void hyp_call(pkvm_handler_regs_t *regs) { for (;;) ops->puts(""); }
""",
        name="looping",
    )
    with Server(str(module), "--call", "hyp_call") as server:
        script = tmp_path / "loop.gdb"
        script.write_text(
            f"set confirm off\ntarget remote :{server.port}\ncontinue\nbt\nset $pc = $x30\nmonitor dmesg 1\nkill\n"
        )
        gdb = subprocess.Popen(
            ["gdb-multiarch", "-nx", "-q", "-batch", "-x", str(script)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        time.sleep(3)
        gdb.send_signal(2)
        text, _ = gdb.communicate(timeout=60)
    assert "Program received signal SIGINT" in text
    found = frames(text)
    assert found[found.index("hyp_call") + 1] == "handle_host_hcall"


def test_hypercall_stops_by_monitor_command(module: Path, tmp_path: Path) -> None:
    commands = ["monitor break hvc 128", "continue", "bt", "continue", "continue", "monitor hvc", "monitor el", "kill"]
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert f"hvc 0xc6000080 {HANDLER}(0x28, 0x2, 0x0): before it, at EL1" in text
    assert frames(text)[:2] == ["_pkvm_emu_hvc", "pkvm_driver_init"]
    assert f"{HANDLER}: at its handler, at EL2" in text
    assert f"{HANDLER}: back at EL1, x0=0x0" in text
    assert f"{HANDLER} [pkvm_driver] at" in text


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("module-init", "EL1 init_module+0x0"),
        ("el2-init", "EL2 __kvm_nvhe_pkvm_driver_hyp_init+0x0"),
        ("hvc", "EL1 init_module+0x"),
        ("deprivilege", "EL1 host_hvc"),
        (HANDLER, f"EL2 __kvm_nvhe_{HANDLER}+0x0"),
        ("pkvm_ops_puts", "EL2 ops->puts"),
        ("hyp/el2.c:22", f"EL2 __kvm_nvhe_{HANDLER}+0x"),
        ("handle_trap", "EL2 handle_trap"),
    ],
)
def test_each_place_to_stop_at(pkvm_driver: Sample, place: str, shown: str) -> None:
    with Server(str(pkvm_driver("16")), "--stop-at", place) as server:
        assert server.head[0].startswith(f"stopped at {shown}")


def test_launch_starts_gdb_with_everything(pkvm_driver: Sample, tmp_path: Path) -> None:
    import sys

    command = [sys.executable, "-m", "pkvm_emu", "gdb", str(pkvm_driver("16")), "--port", "0", "--launch", "gdb"]
    typed = f"break {HANDLER}\ncontinue\nbt 2\nkill\nquit\n"
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=120)
    assert re.search(rf"#0 .*{HANDLER} \(regs=", done.stdout)
    assert done.returncode == 0


def test_a_state_of_an_earlier_call_is_loaded(module: Path, tmp_path: Path) -> None:
    argument = "print ((unsigned long *)$x0)[1]"
    commands = [
        "break *" + HANDLER, "continue", "continue", argument, "print calls", "monitor snap save first", "continue", argument,
        "monitor snap list", "monitor snap load first", "maint flush register-cache", "frame", argument, "print calls", "continue",
        argument, "print calls", "set var $x9 = 5", "monitor snap load first", "delete", "continue",
    ]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
        output, status = server.finish()
    assert re.findall(r"^\$\d+ = (\d+)$", text, re.MULTILINE) == ["1", "1", "3", "1", "1", "3", "2"]
    assert "(in a call that is not the present one)" in text
    assert re.search(rf"^back at state 'first': EL2 \S*{HANDLER}", text, re.MULTILINE)
    assert "were changed by hand since" in text
    assert f"{HANDLER}:3,4 = SMCCC_RET_SUCCESS x1=0xa" in output
    assert status == 0


def test_without_history_a_state_of_another_call_is_refused(module: Path, tmp_path: Path) -> None:
    commands = [f"break {HANDLER}", "continue", "monitor snap save", "continue", "monitor snap load", "kill"]
    with Server(str(module), *CALLS, "--no-reverse") as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "in a call from Python that is not the present one, and no history is kept (--no-reverse)" in text
