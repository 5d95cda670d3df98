"""``pkvm-emu kdir``: the kernel build directory that the documented Makefile wants."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """No options: the directory is the same for every module."""
    parser.description = "Print a directory for: make KDIR=$(pkvm-emu kdir)"


def execute(arguments: argparse.Namespace) -> int:
    """Print the directory (made on first use)."""
    from pkvm_emu.build.kdir import kdir

    print(kdir())
    return 0
