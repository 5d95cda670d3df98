"""The system that ``run``, ``shell``, ``gdb`` and ``step`` boot: their common options, and the system made from them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pkvm_emu.cli.boot_options import add_boot_options
from pkvm_emu.cli.el3_options import add_el3_options, load_smc_files
from pkvm_emu.errors import UsageError

if TYPE_CHECKING:
    from pkvm_emu.boot_plan import BootPlan
    from pkvm_emu.machine.profile import MachineProfile
    from pkvm_emu.system import System


def add_system_options(
    parser: argparse.ArgumentParser, generations: str = "generation: 14, 15, 16 (default: as the module was built)"
) -> None:
    """The modules, the machine, the kernel, the devices and the firmware.

    Args:
        parser: of the command.
        generations: what its ``--android`` takes.
    """
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="*",
        help="a .ko, a source directory, two objects, or the name of a module in the initramfs; name=value sets a parameter",
    )
    parser.add_argument("--android", metavar="N", help=generations)
    parser.add_argument("--system", choices=("kbuild", "bazel"), help="which tree of a source directory to build")
    parser.add_argument("--cmdline", metavar="TEXT", default="", help="kernel command line")
    parser.add_argument("--machine", metavar="FEATURES", default="", help="e.g. nvhe,nopauth,lpa2,va48")
    parser.add_argument("--ram", metavar="MIB", type=int, default=1024, help="RAM in MiB (default 1024)")
    parser.add_argument("--smp", metavar="N", type=int, default=1, help="number of CPUs, 1 to 8 (default 1)")
    parser.add_argument(
        "--continue-on-init-failure", action="store_true", help="a failing EL2 init fails the load and does not panic"
    )
    parser.add_argument(
        "--kernel", metavar="FILE", action="append", default=[], help="Python that serves kernel symbols (repeatable)"
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
    add_el3_options(parser)


def add_budget_option(parser: argparse.ArgumentParser) -> None:
    """``--max-insns``."""
    parser.add_argument("--max-insns", metavar="N", type=int, help="stop after N instructions")


def read_profile(arguments: argparse.Namespace) -> MachineProfile:
    """The machine that the options describe.

    Raises:
        UsageError: a feature that is none.
    """
    from dataclasses import replace

    from pkvm_emu.machine.profile import MachineProfile

    return replace(
        MachineProfile.parse(arguments.machine),
        ram_size=arguments.ram << 20,
        cpus=arguments.smp,
        el3=arguments.el3,
    )


def make_system(arguments: argparse.Namespace, plan: BootPlan, profile: MachineProfile) -> System:
    """The system that the options describe, before its boot.

    Raises:
        UsageError: a file of the user's that cannot be read or fails, or an option out of its range.
    """
    from pkvm_emu.system import System

    budget: int | None = getattr(arguments, "max_insns", None)
    if budget is not None and budget < 1:
        raise UsageError(f"--max-insns {budget}: at least one instruction has to be executed")
    system = System(plan.generation, plan.command_line, profile)
    system.kernel.continues_on_init_failure = arguments.continue_on_init_failure
    system.kernel.stubs_missing = arguments.stub_missing
    system.kernel.ignores_versions = arguments.ignore_versions
    system.add_models(arguments.mmio)
    for path in arguments.kernel:
        system.add_kernel_symbols(path)
    load_smc_files(system, arguments.smc)
    system.machine.core.instruction_budget = budget
    return system
