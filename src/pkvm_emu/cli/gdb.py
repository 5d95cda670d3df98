"""``pkvm-emu gdb``: boot to a point and serve gdb or lldb there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pkvm_emu.cli.boot_options import add_boot_options, read_boot_plan, refuse_nothing_to_run
from pkvm_emu.cli.el3_options import add_el3_options, load_smc_files
from pkvm_emu.errors import ModuleError, UsageError

if TYPE_CHECKING:
    import socket
    import subprocess

    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.flow import Act
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.debug.stops import Stop
    from pkvm_emu.system import System

_DEFAULT_PORT = 1234
_MOST_PORTS = 0xFFFF


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``gdb``."""
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="*",
        help="a .ko, a source directory, two objects, or the name of a module in the initramfs; name=value sets a parameter",
    )
    parser.add_argument("--android", metavar="N", help="generation: 14, 15, 16 (default: as the module was built)")
    parser.add_argument("--system", choices=("kbuild", "bazel"), help="which tree of a source directory to build")
    parser.add_argument("--cmdline", metavar="TEXT", default="", help="kernel command line")
    parser.add_argument(
        "--call",
        metavar="NAME[:ARG,...]",
        action="append",
        default=[],
        help="call a hypercall after the boot (repeatable; `monitor call` does the same later)",
    )
    parser.add_argument("--machine", metavar="FEATURES", default="", help="e.g. nvhe,nopauth,lpa2")
    parser.add_argument("--ram", metavar="MIB", type=int, default=1024, help="RAM in MiB (default 1024)")
    parser.add_argument("--smp", metavar="N", type=int, default=1, help="number of CPUs, 1 to 8 (default 1)")
    parser.add_argument(
        "--continue-on-init-failure", action="store_true", help="a failing EL2 init fails the load and does not panic"
    )
    parser.add_argument(
        "--kernel", metavar="FILE", action="append", default=[], help="Python that serves kernel symbols"
    )
    add_boot_options(parser)
    add_el3_options(parser)
    parser.add_argument(
        "--dtb",
        metavar="FILE",
        help="device tree, .dtb or .dts, number of one in the images, or none (default: the images' first, else made up)",
    )
    parser.add_argument(
        "--mmio",
        metavar="ADDR:SIZE=MODEL",
        action="append",
        default=[],
        help="model of a device: FILE.py[:CLASS] or a shipped one; without ADDR:SIZE= at the nodes it is compatible with",
    )
    parser.add_argument(
        "--stop-at",
        metavar="PLACE",
        default="module-init",
        help="module-init (default), el2-init, hvc, deprivilege, SYMBOL or FILE:LINE",
    )
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
        "--source-map", metavar="OLD=NEW", action="append", default=[], help="sources recorded under OLD are under NEW"
    )
    parser.add_argument(
        "--no-reverse", action="store_true", help="do not count instructions: faster between stops, and no way back"
    )
    parser.add_argument("--record", metavar="FILE", help="write the packets of the session there")
    parser.add_argument("--symbols", metavar="DIR", help="write the ELF files with symbols there (lldb reads them)")


def execute(arguments: argparse.Namespace) -> int:
    """Boot, stop, serve until the run is over or killed; 1 when the module failed."""
    import tempfile

    from pkvm_emu.debug.debugger import VIRTUAL_DIRECTORY, Debugger
    from pkvm_emu.debug.flow import Flow
    from pkvm_emu.debug.launch import find_program
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.debug.serve import serve

    sources = [_source_pair(text) for text in arguments.source_map]
    if arguments.launch:
        find_program(arguments.launch)
    system, acts = _prepare(arguments)
    listener, address = _listen(arguments)
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
    return _finish(system, debugger, first)


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


def _prepare(arguments: argparse.Namespace) -> tuple[System, list[Act]]:
    """The system, not booted yet, and what it is to do."""
    from dataclasses import replace

    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.cli.inputs import load_user_symbols
    from pkvm_emu.cli.run import parse_call
    from pkvm_emu.debug.flow import Act
    from pkvm_emu.machine.profile import MachineProfile
    from pkvm_emu.system import System, choose_profile

    calls = [parse_call(text) for text in arguments.call]
    profile = replace(
        MachineProfile.parse(arguments.machine),
        ram_size=arguments.ram << 20,
        cpus=arguments.smp,
        el3=arguments.el3,
    )
    plan = read_boot_plan(arguments, arguments.modules, arguments.system)
    profile = choose_profile(profile, plan.protected_files or plan.files)
    refuse_nothing_to_run(plan)
    system = System(plan.generation, plan.command_line, profile)
    system.kernel.continues_on_init_failure = arguments.continue_on_init_failure
    system.kernel.ignores_versions = arguments.ignore_versions
    system.add_models(arguments.mmio)
    for path in arguments.kernel:
        load_user_symbols(path, system)
    load_smc_files(system, arguments.smc)

    def boot() -> None:
        run_plan(system, plan)

    acts = [Act("boot", boot)]
    for text, (name, values) in zip(arguments.call, calls, strict=True):
        acts.append(Act(f"call {text}", lambda n=name, v=values, t=text: f"{t} = {system.call(n, *v)}"))  # type: ignore[misc]  # mypy: lambda default
    return system, acts


def _listen(arguments: argparse.Namespace) -> tuple[socket.socket, str]:
    from pkvm_emu.debug.server import listen, listen_unix

    if arguments.socket:
        return listen_unix(arguments.socket), arguments.socket
    if not 0 <= arguments.port <= _MOST_PORTS:
        raise UsageError(f"--port {arguments.port}: a TCP port is 0 to {_MOST_PORTS}")
    listener = listen(arguments.port, arguments.host)
    port = listener.getsockname()[1]
    return listener, f":{port}" if arguments.host == "127.0.0.1" else f"{arguments.host}:{port}"


def _source_pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not old or not equals or not new:
        raise UsageError(f"--source-map {text}: write OLD=NEW, two directories")
    return old, new


def _finish(system: System, debugger: Debugger, first: FirstStop) -> int:
    flow = debugger.flow
    for index, act in enumerate(flow.acts):
        if index in flow.output:
            print(flow.output[index])
        elif index < flow.position:
            print(f"{act.name}: done")
    if flow.killed:
        print(f"ended by the debugger in: {flow.acts[min(flow.position, len(flow.acts) - 1)].name}")
        return 0
    if flow.failure is not None:
        raise flow.failure
    if system.boot_report.failed:
        outcome = next(o for o in system.boot_report.outcomes if o.status != "loaded")
        raise ModuleError(outcome.reason or f"{outcome.name} was not loaded")
    if not first.was_reached:
        raise first.missed()
    return 0
