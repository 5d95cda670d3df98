"""``pkvm-emu step``: the built-in view of a run, instruction by instruction, forwards and backwards."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pkvm_emu.cli.debug_options import add_debug_options, finish, prepare, source_pair

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.debug.step.view import View
    from pkvm_emu.debug.stops import Resume, Stop

_PROMPT = "(step) "


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``step``."""
    add_debug_options(parser)
    parser.add_argument(
        "--command",
        dest="lines",
        metavar="TEXT",
        action="append",
        default=[],
        help="perform this command and ask for none (repeatable); without it, commands come from standard input",
    )
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (default auto)")


def execute(arguments: argparse.Namespace) -> int:
    """Boot to the first stop and take commands until they end; 1 when the module failed."""
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.flow import Flow
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.debug.step.screen import Output
    from pkvm_emu.debug.step.view import View

    sources = [source_pair(text) for text in arguments.source_map]
    system, acts = prepare(arguments)
    debugger = Debugger(system, Flow(acts))
    debugger.keep_history()
    first = FirstStop(debugger, arguments.stop_at)
    colour = {"auto": None, "always": True, "never": False}[arguments.color]
    output = Output(sys.stdout, colour)
    view = View(debugger, output, _commands(arguments.lines, output), sources)
    try:
        run_view(debugger, view, first)
    finally:
        debugger.control.detach()
    return finish(system, debugger, first)


def run_view(debugger: Debugger, view: View, first: FirstStop) -> None:
    """Run the debugger's flow: to the first stop alone, from there on as the view says."""
    import signal

    from pkvm_emu.debug.stops import Resume, StopKind

    control = debugger.control

    def at_stop(stop: Stop) -> Resume:
        if stop.kind is not StopKind.ERROR and not first.was_reached:
            return Resume()
        first.was_reached = True
        return view.at_stop(stop)

    def at_end() -> None:
        if control.replay is not None and control.replay.is_active:
            control.replay.ended()
        if first.was_reached:
            view.at_end(control.make_stop(StopKind.END))

    def interrupt(_number: int, _frame: Any) -> None:
        # While commands are read, nothing runs that could stop.
        control.interrupt("interrupted")
        if view.is_reading:
            raise KeyboardInterrupt

    control.on_stop = at_stop
    first.resolve()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        debugger.flow.run(at_end)
    finally:
        signal.signal(signal.SIGINT, before)


def _commands(given: list[str], output: Any) -> Iterator[str]:
    """The lines: those of ``--command``, else typed ones, else those of standard input."""
    if given or not sys.stdin.isatty():
        for line in given or sys.stdin:
            output.text(f"{_PROMPT}{line.rstrip()}")
            yield line
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited, and come back with the arrow keys)
    while True:
        try:
            yield input(_PROMPT)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except EOFError:
            sys.stdout.write("\n")
            return
