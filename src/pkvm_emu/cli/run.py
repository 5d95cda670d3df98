"""``pkvm-emu run``: boot with modules, call their hypercalls, show what happened."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pkvm_emu.cli import check_options, recording
from pkvm_emu.cli.boot_options import add_boot_options, read_boot_plan, refuse_nothing_to_run
from pkvm_emu.cli.el3_options import add_el3_options, load_smc_files
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
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="*",
        help="a .ko, a source directory, two objects, or the name of a module in the initramfs; name=value sets a parameter",
    )
    parser.add_argument(
        "--android", metavar="N", help="generation: 14, 15, 16 (default: as the module was built); all: each in turn"
    )
    parser.add_argument("--system", choices=("kbuild", "bazel"), help="which tree of a source directory to build")
    parser.add_argument("--cmdline", metavar="TEXT", default="", help="kernel command line")
    parser.add_argument(
        "--call",
        metavar="NAME[:ARG,...]",
        action="append",
        default=[],
        help="call a hypercall after the boot (repeatable)",
    )
    parser.add_argument("--machine", metavar="FEATURES", default="", help="e.g. nvhe,nopauth,lpa2,va48")
    parser.add_argument("--ram", metavar="MIB", type=int, default=1024, help="RAM in MiB (default 1024)")
    parser.add_argument(
        "--continue-on-init-failure", action="store_true", help="a failing EL2 init fails the load and does not panic"
    )
    parser.add_argument("--smp", metavar="N", type=int, default=1, help="number of CPUs, 1 to 8 (default 1)")
    parser.add_argument("--max-insns", metavar="N", type=int, help="stop after N instructions")
    parser.add_argument(
        "--kernel", metavar="FILE", action="append", default=[], help="Python that serves kernel symbols"
    )
    parser.add_argument(
        "--stub-missing",
        action="store_true",
        help="link symbols of absent modules (depends=) to stubs that stop the run",
    )
    add_boot_options(parser)
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
    parser.add_argument("--mmio-log", action="store_true", help="list every access to a device's registers")
    parser.add_argument("--dts", action="store_true", help="print the device tree as source, and run nothing")
    add_el3_options(parser)
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
            arguments.append(int(word, 0))
        except ValueError as error:
            raise UsageError(f"--call {text}: {word!r} is no number") from error
    if not name or len(arguments) > 7:
        raise UsageError(f"--call {text}: write NAME[:ARG,...] with up to seven arguments (x1 to x7)")
    return name, arguments


def execute(arguments: argparse.Namespace) -> int:
    """Boot, call, report. The report is printed also when the run ends badly."""
    from dataclasses import replace

    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.cli.run_report import RunReport
    from pkvm_emu.machine.profile import MachineProfile
    from pkvm_emu.system import choose_profile

    calls = [parse_call(text) for text in arguments.call]
    profile = replace(
        MachineProfile.parse(arguments.machine),
        ram_size=arguments.ram << 20,
        cpus=arguments.smp,
        el3=arguments.el3,
    )
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
            lambda: _make(arguments, plan, profile), lambda system: _play(system, plan, calls), arguments.json
        )
    system = _make(arguments, plan, profile)
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
        _print(report, failure, arguments.json, system.explain(None) if arguments.explain else None)
    if failure is not None:
        raise failure
    return _exit_code(system, report)


def _run_everywhere(
    arguments: argparse.Namespace, plan: BootPlan, profile: MachineProfile, calls: Sequence[tuple[str, list[int]]]
) -> int:
    from dataclasses import replace

    from pkvm_emu.abi.generation import generation
    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.cli.every_generation import run_everywhere

    def make(android: str) -> System:
        return _make(arguments, replace(plan, generation=generation(android)), profile)

    def boot(system: System) -> None:
        run_plan(system, replace(plan, generation=system.generation))

    return run_everywhere(plan.protected_files or plan.files, make, boot, calls, arguments)


def _make(arguments: argparse.Namespace, plan: BootPlan, profile: MachineProfile) -> System:
    """The system that the options describe, before its boot."""
    from pkvm_emu.cli.inputs import load_user_symbols
    from pkvm_emu.system import System

    system = System(plan.generation, plan.command_line, profile)
    system.kernel.continues_on_init_failure = arguments.continue_on_init_failure
    system.kernel.stubs_missing = arguments.stub_missing
    system.kernel.ignores_versions = arguments.ignore_versions
    system.add_models(arguments.mmio)
    for path in arguments.kernel:
        load_user_symbols(path, system)
    load_smc_files(system, arguments.smc)
    system.machine.core.instruction_budget = arguments.max_insns
    return system


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
    if sys.stdout.isatty():
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


def _exit_code(system: System, report: RunReport) -> int:
    if system.boot_report.failed:
        outcome = next(o for o in system.boot_report.outcomes if o.status != "loaded")
        raise ModuleError(outcome.reason or f"{outcome.name} was not loaded")
    if system.contracts is not None and system.contracts.errors:
        return 1
    return 0 if all(call.result.is_success for call in report.calls) else 1
