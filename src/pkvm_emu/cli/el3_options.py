"""The options about the firmware at EL3, for the commands that boot: ``--el3`` and ``--smc``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.system import System


def add_el3_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    parser.add_argument(
        "--el3",
        choices=("bare", "full"),
        default="bare",
        help="firmware: bare (PSCI, the default) or full (SMCCC 1.2, TRNG, SDEI, FF-A too)",
    )
    parser.add_argument(
        "--smc", metavar="FILE", action="append", default=[], help="answers of vendor SMCs, a .toml table or a .py file"
    )


def load_smc_files(system: System, paths: Iterable[str]) -> None:
    """Serve the calls of the files given with ``--smc``.

    Raises:
        UsageError: a file cannot be read or is wrong.
    """
    for path in paths:
        system.add_smc(path)
