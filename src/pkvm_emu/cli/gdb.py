"""``pkvm-emu gdb``: boot to a point and serve gdb or lldb there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pkvm_emu.cli.debug_options import add_debug_options, finish, prepare, source_pair
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    import socket
    import subprocess

    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.stops import Stop

_DEFAULT_PORT = 1234
_MOST_PORTS = 0xFFFF


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``gdb``."""
    add_debug_options(parser)
    parser.add_argument(
        "--port",
        metavar="N",
        type=int,
        default=_DEFAULT_PORT,
        help=f"TCP port (default {_DEFAULT_PORT}; 0: a free one)",
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: whoever reaches it controls the machine)",
    )
    parser.add_argument("--socket", metavar="PATH", help="listen on a Unix socket and on no port")
    parser.add_argument("--launch", choices=("gdb", "lldb"), help="start the debugger here, attached")
    parser.add_argument(
        "--command",
        dest="typed",
        metavar="TEXT",
        action="append",
        default=[],
        help="typed into the debugger that --launch starts, once it is attached (repeatable)",
    )
    parser.add_argument("--batch", action="store_true", help="the debugger that --launch starts ends after --command")
    parser.add_argument(
        "--no-reverse", action="store_true", help="do not count instructions: faster between stops, and no way back"
    )
    parser.add_argument("--record", metavar="FILE", help="write the packets of the session there")
    parser.add_argument("--symbols", metavar="DIR", help="write the ELF files with symbols there (lldb reads them)")


def execute(arguments: argparse.Namespace) -> int:
    """Boot, stop, serve until the run is over or killed; 1 when the module failed."""
    import signal
    import tempfile

    from pkvm_emu.debug.debugger import VIRTUAL_DIRECTORY, Debugger
    from pkvm_emu.debug.flow import Flow
    from pkvm_emu.debug.launch import find_program
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.debug.serve import serve

    sources = [source_pair(text) for text in arguments.source_map]
    if arguments.launch:
        find_program(arguments.launch)
    system, acts = prepare(arguments)
    listener, address = _listen(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with tempfile.TemporaryDirectory(prefix="pkvm-emu-gdb-") as place:
            here = Path(place)
            files = arguments.symbols or (place if arguments.launch == "lldb" else VIRTUAL_DIRECTORY)
            debugger = Debugger(system, Flow(acts), str(Path(files).absolute()))
            if not arguments.no_reverse:
                debugger.keep_history()
            first = FirstStop(debugger, arguments.stop_at)
            front = _Front(debugger, address, sources, arguments, here)
            try:
                with _recording(arguments.record) as record:
                    serve(debugger, listener, first, front.announce, front.is_over, record)
            finally:
                front.wait()
    finally:
        if arguments.socket:
            Path(arguments.socket).unlink(missing_ok=True)
    return finish(system, debugger, first)


def _terminated(number: int, _frame: object) -> None:
    """SIGTERM: leave nothing behind."""
    sys.exit(128 + number)


@contextmanager
def _recording(path: str | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        Path(path).touch()
    except OSError as error:
        raise UsageError(f"--record {path}: {error.strerror}") from error
    with open(path, "w", encoding="ascii") as file:
        yield file


class _Front:
    """What the user is told or given at the first stop: the line to type, or a debugger."""

    def __init__(
        self,
        debugger: Debugger,
        address: str,
        sources: list[tuple[str, str]],
        arguments: argparse.Namespace,
        place: Path,
    ) -> None:
        self._debugger = debugger
        self._address = address
        self._sources = sources
        self._arguments = arguments
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None

    def announce(self, stop: Stop) -> None:
        """The guest stands still for the first time."""
        import signal

        from pkvm_emu.debug.launch import gdb_commands, lldb_commands, start

        print(f"stopped at {self._debugger.describe_cpu(stop.cpu)}")
        if stop.text:
            print(stop.text)
        arguments = self._arguments
        is_lldb = arguments.launch == "lldb"
        paths = self._debugger.libraries.write() if arguments.symbols is not None or is_lldb else []
        if is_lldb:
            commands = lldb_commands(self._address, paths, self._sources)
        else:
            commands = gdb_commands(self._address, self._sources)
        sys.stdout.flush()
        if arguments.launch is None:
            typed = [f"-ex '{line}'" for line in commands if line.startswith(("set sub", "target"))]
            print(f"gdb-multiarch {' '.join(typed)}")
            for path in paths:
                print(f"  symbols: {path}")
        else:
            # The terminal's Ctrl-C is the debugger's: it interrupts the guest over the connection.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            quiet = ["set confirm off"] if arguments.batch and not is_lldb else []
            commands = [*quiet, *commands, *arguments.typed]
            self._process = start(arguments.launch, commands, self._place, arguments.batch)
        sys.stdout.flush()

    def is_over(self) -> bool:
        """The debugger that was started has ended."""
        return self._process is not None and self._process.poll() is not None

    def wait(self) -> None:
        """Wait for the debugger that was started."""
        if self._process is not None:
            self._process.wait()


def _listen(arguments: argparse.Namespace) -> tuple[socket.socket, str]:
    from pkvm_emu.debug.server import listen, listen_unix

    if arguments.socket:
        return listen_unix(arguments.socket), arguments.socket
    if not 0 <= arguments.port <= _MOST_PORTS:
        raise UsageError(f"--port {arguments.port}: a TCP port is 0 to {_MOST_PORTS}")
    listener = listen(arguments.port, arguments.host)
    port = listener.getsockname()[1]
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    return listener, f":{port}" if host == "127.0.0.1" else f"{host}:{port}"
