"""``pkvm-emu run``: boot with modules, call their hypercalls, show what happened."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from pkvm_emu.cli import check_options, recording
from pkvm_emu.cli.boot_options import read_boot_plan, refuse_nothing_to_run
from pkvm_emu.cli.system_options import add_budget_option, add_system_options, make_system, read_profile
from pkvm_emu.errors import ModuleError, PkvmEmuError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pkvm_emu.boot_plan import BootPlan
    from pkvm_emu.cli.run_report import RunReport
    from pkvm_emu.explain import Explanations
    from pkvm_emu.machine.profile import MachineProfile
    from pkvm_emu.system import System


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    add_system_options(parser, "generation: 14, 15, 16 (default: as the module was built); all: each in turn")
    parser.add_argument(
        "--call",
        metavar="NAME[:ARG,...]",
        action="append",
        default=[],
        help="call a hypercall after the boot (repeatable)",
    )
    add_budget_option(parser)
    parser.add_argument("--mmio-log", action="store_true", help="list every access to a device's registers")
    parser.add_argument("--dts", action="store_true", help="print the device tree as source, and run nothing")
    parser.add_argument("--explain", action="store_true", help="say why each op, hypercall or access was refused")
    check_options.add_check_options(parser)
    recording.configure(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def parse_call(text: str) -> tuple[str, list[int]]:
    """``name:1,0x20`` as a name and numbers.

    >>> parse_call("ping:1,0x20")
    ('ping', [1, 32])
    """
    name, colon, rest = text.partition(":")
    arguments = []
    for word in rest.split(",") if colon and rest else []:
        try:
            number = int(word, 0)
        except ValueError as error:
            raise UsageError(f"--call {text}: {word!r} is no number") from error
        if not -(1 << 63) <= number < 1 << 64:
            raise UsageError(f"--call {text}: {word} does not fit in a register of 64 bits")
        arguments.append(number)
    if not name or len(arguments) > 7:
        raise UsageError(f"--call {text}: write NAME[:ARG,...] with up to seven arguments (x1 to x7)")
    return name, arguments


def execute(arguments: argparse.Namespace) -> int:
    """Boot, call, report. The report is printed also when the run ends badly."""
    _refuse_contradictions(arguments)
    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.cli.run_report import RunReport
    from pkvm_emu.system import choose_profile

    calls = [parse_call(text) for text in arguments.call]
    profile = read_profile(arguments)
    everywhere = arguments.android == "all"
    if everywhere:
        arguments.android = None
    plan = read_boot_plan(arguments, arguments.modules, arguments.system)
    files = plan.protected_files or plan.files
    profile = choose_profile(profile, files)
    refuse_nothing_to_run(plan)
    if everywhere:
        return _run_everywhere(arguments, plan, profile, calls)
    if arguments.sweep:
        return check_options.run_sweep(
            lambda: make_system(arguments, plan, profile), lambda system: _play(system, plan, calls), arguments.json
        )
    system = make_system(arguments, plan, profile)
    if arguments.dts:
        from pkvm_emu.kernel.devicetree.source import to_source

        system.set_up_board(files, plan.dtb)
        sys.stdout.write(to_source(system.device_tree))
        return 0
    check_options.begin(arguments, system)
    recording.begin(arguments, system)
    report = RunReport(system, files, lists_accesses=arguments.mmio_log)
    failure: PkvmEmuError | None = None
    try:
        run_plan(system, plan)
        for name, values in calls:
            report.add_call(name, values, system.call(name, *values))
    except PkvmEmuError as error:
        failure = error
    finally:
        recording.finish(arguments, system, failure, report.calls)
        if isinstance(failure, UsageError) and not system.boot_report.outcomes:
            raise failure  # A bad file: nothing was booted that there could be a report of.
        failure = failure or _boot_failure(system)
        _print(report, failure, arguments.json, system.explain(None) if arguments.explain else None)
    if failure is not None:
        raise failure
    return _exit_code(system, report)


#: Options that say nothing where the runs are many, and those that make them many.
_OF_ONE_RUN = ("timeline", "html", "explain", "inject", "mmio_log")
_MANY_RUNS = ("sweep", "dts")


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    many = [f"--{name}" for name in _MANY_RUNS if getattr(arguments, name)]
    if arguments.android == "all":
        many.append("--android all")
    asked = [f"--{name.replace('_', '-')}" for name in _OF_ONE_RUN if getattr(arguments, name)]
    if many and asked:
        raise UsageError(f"{asked[0]} is about one run: leave it or {many[0]} out")
    if len(many) > 1:
        raise UsageError(f"{many[0]} and {many[1]} exclude each other")


def _run_everywhere(
    arguments: argparse.Namespace, plan: BootPlan, profile: MachineProfile, calls: Sequence[tuple[str, list[int]]]
) -> int:
    from dataclasses import replace

    from pkvm_emu.abi.generation import generation
    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.cli.every_generation import run_everywhere

    def make(android: str) -> System:
        return make_system(arguments, replace(plan, generation=generation(android)), profile)

    def boot(system: System) -> None:
        run_plan(system, replace(plan, generation=system.generation))

    return run_everywhere(plan.protected_files or plan.files, make, boot, calls, arguments)


def _play(system: System, plan: BootPlan, calls: Sequence[tuple[str, list[int]]]) -> None:
    """Boot, and make the calls of those hypercalls that are there."""
    from pkvm_emu.boot_flow import run_plan

    run_plan(system, plan)
    for name, values in calls:
        if any(name in module.hypercalls for module in system.modules.values()):
            system.call(name, *values)


def _print(report: RunReport, failure: PkvmEmuError | None, as_json: bool, refusals: Explanations | None) -> None:
    if as_json:
        import json

        facts = report.as_dict(failure)
        if refusals is not None:
            facts["refusals"] = [refusal.as_dict() for refusal in refusals]
        print(json.dumps(facts, indent=2))
        return
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        _print_styled(report)
    else:
        sys.stdout.write(report.as_text())
    if refusals is not None:
        sys.stdout.write(f"refused:\n{refusals}\n")
    sys.stdout.flush()


def _print_styled(report: RunReport) -> None:
    # Only for a terminal: importing the library takes longer than most runs.
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in report.lines():
        console.print(line.text, style=line.style)


def _boot_failure(system: System) -> ModuleError | None:
    """Why the first protected module that failed did."""
    if not system.boot_report.failed:
        return None
    outcome = next(outcome for outcome in system.boot_report.outcomes if outcome.status != "loaded")
    return ModuleError(outcome.reason or f"{outcome.name} was not loaded")


def _exit_code(system: System, report: RunReport) -> int:
    if system.contracts is not None and system.contracts.errors:
        return 1
    return 0 if all(call.result.is_success for call in report.calls) else 1
