"""What people and clients do to a debug server: calls from the debugger, wrong commands, odd addresses, signals."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, run_gdb

from pkvm_emu.debug import codec
from pkvm_emu.debug.codec import Decoder, Packet, frame
from pkvm_emu.debug.server import listen, listen_unix
from pkvm_emu.errors import UsageError

Sample = Callable[[str], Path]
HANDLER = "pkvm_driver_hyp_hvc"
CALLS = ("--call", f"{HANDLER}:1,2", "--call", f"{HANDLER}:3,4")
needs_gdb = pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="gdb-multiarch is not installed")


@pytest.fixture(params=["14", "16"])
def module(request: pytest.FixtureRequest, pkvm_driver: Sample) -> Path:
    """The sample for the oldest and the newest generation."""
    return pkvm_driver(request.param)


@needs_gdb
def test_gdb_calls_a_function_at_el2_and_everything_is_as_before(module: Path, tmp_path: Path) -> None:
    commands = [
        f"tbreak {HANDLER}", "continue", "set $before = $pc", "print calls", f"call (void){HANDLER}($x0)", "print calls",
        "print $pc == $before", "print ((unsigned long *)$x0)[1]", "continue",
    ]  # fmt: skip
    with Server(str(module), *CALLS) as server:
        text = run_gdb(server.port, commands, tmp_path)
        output, status = server.finish()
    # 40 + 2 + the first call, by hand.
    assert re.findall(r"^\$\d+ = (\d+)$", text, re.MULTILINE) == ["0", "1", "1", "43"]
    # Two more calls were made by the boot: the one by hand, and the one that was interrupted.
    assert f"{HANDLER}:1,2 = SMCCC_RET_SUCCESS x1=0x6" in output
    assert status == 0


@needs_gdb
def test_a_breakpoint_where_nothing_can_be_executed_stops_before_the_fault(module: Path, tmp_path: Path) -> None:
    commands = [
        f"tbreak *{HANDLER}",
        "continue",
        "break *0",
        "set var $x30 = 0",
        "continue",
        "print ($cpsr & 12) == 8",
        "continue",
        "kill",
    ]
    with Server(str(module)) as server:
        text = run_gdb(server.port, commands, tmp_path)
    assert "Breakpoint 2, 0x0000000000000000 in ?? ()" in text
    assert re.findall(r"^\$\d+ = .*?(\d+)$", text, re.MULTILINE)[-1] == "1"
    # Going on from there, the fault is taken.
    assert "hypervisor panic" in text


@needs_gdb
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("run", 'The "remote" target does not support "run"'),
        ("info mem", "0x"),
        ("info auxv", "No auxiliary vector found"),
        ("catch syscall", "The feature 'catch syscall' is not supported"),
        ("x/200i $pc", "stp\tx29, x30"),
        ("disassemble", "End of assembler dump."),
        ("info all-registers", "ID_AA64MMFR0_EL1"),
    ],
)
def test_commands_that_have_nothing_to_find_say_so(
    command: str, answer: str, pkvm_driver: Sample, tmp_path: Path
) -> None:
    with Server(str(pkvm_driver("16"))) as server:
        text = run_gdb(server.port, [command], tmp_path)
    assert answer in text


@needs_gdb
def test_conditions_commands_and_all_cpus(module: Path, tmp_path: Path) -> None:
    commands = [
        f"break {HANDLER} if ((unsigned long *)$x0)[1] == 3", "commands\nsilent\nprint 4242\nend", "continue",
        "thread apply all bt 1", "hbreak handle_trap", "info breakpoints", "awatch calls", "continue", "delete", "detach",
    ]  # fmt: skip
    with Server(str(module), *CALLS, "--smp", "2") as server:
        text = run_gdb(server.port, commands, tmp_path)
        again = run_gdb(server.port, ["bt 1", "kill"], tmp_path)
    assert text.count("= 4242") == 1
    assert len(re.findall(r"^Thread \d+ \(Thread \d+", text, re.MULTILINE)) == 2
    assert "hw breakpoint" in text
    assert "Hardware access (read/write) watchpoint 3: calls" in text
    assert re.search(rf"^#0 .*{HANDLER} \(", again, re.MULTILINE)


def test_an_ipv6_address_is_listened_on() -> None:
    try:
        listener = listen(0, "::1")
    except UsageError as error:
        pytest.skip(str(error))
    with listener, socket.create_connection(listener.getsockname()[:2]):
        assert listener.getsockname()[0] == "::1"


def test_a_port_in_use_and_a_wrong_host_are_named() -> None:
    with listen(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}: "):
            listen(port)
    with pytest.raises(UsageError, match=r"cannot listen on no\.such\.host\.invalid:0"):
        listen(0, "no.such.host.invalid")


def test_a_socket_in_use_is_kept_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with listen_unix(path), pytest.raises(UsageError, match="cannot listen on"):
        listen_unix(path)
    # The first is closed now, and its file is left.
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    (tmp_path / "file").write_text("not a socket")
    with pytest.raises(UsageError, match="cannot listen on"):
        listen_unix(str(tmp_path / "file"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_ends_the_server_and_leaves_nothing(
    number: signal.Signals, status: int, pkvm_driver: Sample, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-m", "pkvm_emu", "gdb", str(pkvm_driver("16")), "--socket", str(path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A job in the background of a shell ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            assert process.stdout is not None
            while "gdb-multiarch" not in process.stdout.readline():
                pass
            process.send_signal(number)
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == status
    assert "Traceback" not in output
    assert not path.exists()


def test_rubbish_and_half_packets_leave_the_session_alive(pkvm_driver: Sample) -> None:
    with (
        Server(str(pkvm_driver("16"))) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw,
    ):
        raw.sendall(b"\x00\xff}}##$$$" + b"A" * (2 * codec.PACKET_LIMIT))
        raw.sendall(b"#zz$m0,")
        time.sleep(0.1)
        raw.sendall(b"4#fd")
        for piece in (b"$", b"qC", b"#", b"b4"):
            raw.sendall(piece)
            time.sleep(0.02)
        decoder, answers = Decoder(), []
        while b"QC1" not in answers:
            data = raw.recv(65536)
            assert data
            answers += [event.data for event in decoder.feed(data) if isinstance(event, Packet)]
        raw.sendall(b"+" + frame(b"k"))
