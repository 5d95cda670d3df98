"""What ``gdb`` and ``step`` have in common: their options, the system that they debug, and how they end."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pkvm_emu.cli.boot_options import read_boot_plan, refuse_nothing_to_run
from pkvm_emu.cli.system_options import add_system_options, make_system, read_profile
from pkvm_emu.errors import ModuleError, UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.flow import Act
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.system import System


def add_debug_options(parser: argparse.ArgumentParser) -> None:
    """What to boot and call, and where to stop first."""
    add_system_options(parser)
    parser.add_argument(
        "--call",
        metavar="NAME[:ARG,...]",
        action="append",
        default=[],
        help="call a hypercall after the boot (repeatable; `monitor call` does the same later)",
    )
    parser.add_argument(
        "--stop-at",
        metavar="PLACE",
        default="module-init",
        help="module-init (default), el2-init, hvc, deprivilege, SYMBOL or FILE:LINE",
    )
    parser.add_argument(
        "--source-map", metavar="OLD=NEW", action="append", default=[], help="sources recorded under OLD are under NEW"
    )


def prepare(arguments: argparse.Namespace) -> tuple[System, list[Act]]:
    """The system, not booted yet, and what it is to do."""
    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.cli.run import parse_call
    from pkvm_emu.debug.flow import Act
    from pkvm_emu.system import choose_profile

    calls = [parse_call(text) for text in arguments.call]
    profile = read_profile(arguments)
    plan = read_boot_plan(arguments, arguments.modules, arguments.system)
    profile = choose_profile(profile, plan.protected_files or plan.files)
    refuse_nothing_to_run(plan)
    system = make_system(arguments, plan, profile)

    def boot() -> None:
        run_plan(system, plan)

    acts = [Act("boot", boot)]
    for text, (name, values) in zip(arguments.call, calls, strict=True):
        acts.append(Act(f"call {text}", lambda n=name, v=values, t=text: f"{t} = {system.call(n, *v)}"))  # type: ignore[misc]  # mypy: lambda default
    return system, acts


def source_pair(text: str) -> tuple[str, str]:
    """The two directories of ``--source-map``.

    Raises:
        UsageError: they are not two.
    """
    old, equals, new = text.partition("=")
    if not old or not equals or not new:
        raise UsageError(f"--source-map {text}: write OLD=NEW, two directories")
    return old, new


def finish(system: System, debugger: Debugger, first: FirstStop) -> int:
    """Print what the calls returned; the exit status.

    Raises:
        PkvmEmuError: what ended the run, or that the first stop was never reached.
    """
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
