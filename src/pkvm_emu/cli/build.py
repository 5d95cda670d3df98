"""``pkvm-emu build``: sources to ``.ko``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pkvm_emu.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``build``."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory with a Makefile or a BUILD.bazel")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where the .ko goes (DIR/build-out/NAME.ko)")
    parser.add_argument("--android", metavar="N", help="generation: 14, 15, 16 (default 16)")
    parser.add_argument("--system", choices=("kbuild", "bazel"), help="which tree to read where DIR has both")
    parser.add_argument("--module", metavar="NAME", help="which module to build where the tree has several")
    parser.add_argument(
        "--symbols",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a .ko or Module.symvers it imports from",
    )
    parser.add_argument("--config", metavar="NAME=VALUE", action="append", default=[], help="e.g. PKVM_FTRACE=y")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command and all compiler output")


def parse_config(items: list[str]) -> dict[str, str]:
    """``["A=y"]`` as a mapping."""
    config = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UsageError(f"--config {item}: write NAME=VALUE")
        config[name] = value
    return config


def execute(arguments: argparse.Namespace) -> int:
    """Build, and print the path of the result."""
    from pkvm_emu.build.builder import build_module
    from pkvm_emu.build.report import ToolError

    try:
        result = build_module(
            arguments.directory,
            arguments.output,
            arguments.android,
            parse_config(arguments.config),
            module=arguments.module,
            system=arguments.system,
            symbols=tuple(arguments.symbols),
        )
    except ToolError as error:
        if arguments.verbose:
            sys.stderr.write(error.output.rstrip("\n") + "\n")
        raise
    if arguments.verbose:
        print("\n".join(result.commands))
    if result.log:
        print(result.log.rstrip("\n"))
    print(f"{result.path} ({result.name}, {result.generation})")
    return 0
