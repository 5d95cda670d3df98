"""What ``gdb`` and ``step`` have in common: their options, the system that they debug, and how they end."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pkvm_emu.cli.boot_options import add_boot_options, read_boot_plan, refuse_nothing_to_run
from pkvm_emu.cli.el3_options import add_el3_options, load_smc_files
from pkvm_emu.errors import ModuleError, UsageError

if TYPE_CHECKING:
    from pkvm_emu.debug.debugger import Debugger
    from pkvm_emu.debug.flow import Act
    from pkvm_emu.debug.places import FirstStop
    from pkvm_emu.system import System


def add_debug_options(parser: argparse.ArgumentParser) -> None:
    """What to boot and call, and where to stop first."""
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
        "--source-map", metavar="OLD=NEW", action="append", default=[], help="sources recorded under OLD are under NEW"
    )


def prepare(arguments: argparse.Namespace) -> tuple[System, list[Act]]:
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
