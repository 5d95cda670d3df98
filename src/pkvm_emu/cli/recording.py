"""``--timeline FILE`` and ``--html FILE``: a recording of the run, written when it is over, however it ended."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.cli.run_report import Call
    from pkvm_emu.errors import PkvmEmuError
    from pkvm_emu.system import System


def configure(parser: argparse.ArgumentParser) -> None:
    """The options, for each command that runs something."""
    parser.add_argument(
        "--timeline", metavar="FILE", help="write a trace of the run for ui.perfetto.dev (Chrome trace-event JSON)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with timeline, page ownership, costs and coverage")


def begin(arguments: argparse.Namespace, system: System) -> None:
    """Record, if one of the options was given.

    Raises:
        UsageError: a file cannot be written, which is better known before the run than after it.
    """
    if arguments.timeline is None and arguments.html is None:
        return
    if arguments.timeline == arguments.html:
        raise UsageError(f"--timeline and --html {arguments.html}: one file cannot hold both")
    for option, path in (("--timeline", arguments.timeline), ("--html", arguments.html)):
        if path is not None:
            try:
                with Path(path).open("a", encoding="utf-8"):
                    pass
            except OSError as error:
                raise UsageError(f"{option} {path}: {error.strerror}") from error
    system.record_timeline()


def finish(
    arguments: argparse.Namespace, system: System, failure: PkvmEmuError | None, calls: Sequence[Call] = ()
) -> None:
    """Write what was recorded."""
    if arguments.timeline is None and arguments.html is None:
        return
    system.timeline.failure = "" if failure is None else str(failure)
    if arguments.timeline is not None:
        system.timeline.save(arguments.timeline)
    if arguments.html is not None:
        from pkvm_emu.report import save_html

        save_html(arguments.html, system.timeline, [(call.name, call.arguments, str(call.result)) for call in calls])
