"""A debugger without a socket, and the real ones: what the tests of this directory share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pkvm_emu.debug.debugger import Debugger
from pkvm_emu.debug.flow import Act, Flow
from pkvm_emu.debug.launch import lldb_commands
from pkvm_emu.debug.packets.registry import Answer, Go
from pkvm_emu.debug.session import Session
from pkvm_emu.debug.stops import Resume, Stop
from pkvm_emu.system import System

OnStop = Callable[[Session, Stop], Resume | None]


class Harness:
    """A booted system under run control; each stop goes to a list of functions, one after the other."""

    def __init__(self, system: System, acts: Sequence[Act] = ()) -> None:
        self.system = system
        self.debugger = Debugger(system, Flow(list(acts)))
        self.stops: list[Stop] = []
        self.script: list[OnStop] = []
        self.session: Session | None = None
        self.debugger.control.library_state = None
        self.debugger.control.on_stop = self._at_stop

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.debugger.control.detach()

    def _at_stop(self, stop: Stop) -> Resume:
        self.stops.append(stop)
        if self.session is None:
            self.session = Session(self.debugger, stop)
        self.session.at_stop(stop)
        function = self.script.pop(0) if self.script else None
        return (function(self.session, stop) if function is not None else None) or Resume()

    def at(self, *script: OnStop) -> None:
        """What is done at the next stops."""
        self.script.extend(script)

    def stop_first(self, function: OnStop) -> None:
        """Stop at the first instruction that runs next."""
        self.script.insert(0, function)
        self.debugger.control.interrupt("test")


def send(session: Session, packet: str) -> str:
    """The answer to a packet, as text."""
    answer: Answer = session.answer(packet.encode("latin-1"))
    assert isinstance(answer, bytes)
    return answer.decode("latin-1")


def go(session: Session, packet: str) -> Resume:
    """How a packet lets the guest run."""
    answer = session.answer(packet.encode("latin-1"))
    assert isinstance(answer, Go)
    return answer.resume


def monitor(session: Session, line: str) -> str:
    """What a monitor command prints."""
    answer = send(session, f"qRcmd,{line.encode().hex()}")
    return "" if answer == "OK" else bytes.fromhex(answer).decode()


def number(register: str) -> int:
    """A register of an answer, lowest byte first."""
    return int.from_bytes(bytes.fromhex(register), "little")


class Server:
    """``pkvm-emu gdb`` as a process."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PKVM_EMU_TRACEBACK": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "pkvm_emu", "gdb", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.head: list[str] = []
        while not self.head or not self.head[-1].startswith("gdb-multiarch"):
            line = self.process.stdout.readline()
            assert line, "".join(self.head)
            self.head.append(line.rstrip("\n"))
        self.port = int(self.head[-1].rpartition(":")[2].rstrip("'"))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> tuple[str, int]:
        """What it still prints, and its status, once it ends by itself."""
        output, _ = self.process.communicate(timeout=60)
        return output, self.process.returncode


def run_gdb(port: int, commands: Sequence[str], directory: Path) -> str:
    """What the real gdb prints for commands typed after it has connected."""
    lines = [
        "set confirm off",
        "set pagination off",
        "set width 0",
        "set breakpoint pending on",
        f"target remote :{port}",
    ]
    script = directory / "commands.gdb"
    script.write_text("\n".join([*lines, *commands]) + "\n")
    return _run(["gdb-multiarch", "-nx", "-q", "-batch", "-x", str(script)])


def run_lldb(port: int, symbols: Path, commands: Sequence[str], directory: Path) -> str:
    """The same for lldb."""
    files = sorted(symbols.glob("*.elf"), key=lambda path: (path.name != "machine.elf", path.name))
    lines = lldb_commands(f":{port}", [str(path) for path in files])
    script = directory / "commands.lldb"
    script.write_text("\n".join([*lines, *commands]) + "\n")
    return _run(["lldb", "--no-use-colors", "--batch", "-x", "-s", str(script)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr
