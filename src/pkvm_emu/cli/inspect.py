"""``pkvm-emu inspect``: what a module binary is and uses, found without running it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``inspect``."""
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="+",
        help="a .ko, a source directory, or two objects; modules given together may use each other's symbols",
    )
    parser.add_argument("--android", metavar="N", help="generation: 14, 15, 16 (default: as the module was built)")
    parser.add_argument("--system", choices=("kbuild", "bazel"), help="which tree of a source directory to build")
    parser.add_argument(
        "--abi", metavar="N", help="only what breaks on another generation (14, 15, 16, all): ops by name and call site"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="every call site instead of the first three")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def execute(arguments: argparse.Namespace) -> int:
    """Inspect every module; nothing is printed when one of them is unsound."""
    from pkvm_emu.cli.inputs import read_given_modules
    from pkvm_emu.inspect.inspection import inspect_module

    files = [module.file for module in read_given_modules(arguments.modules, arguments.android, arguments.system)]
    if arguments.abi is not None:
        return _compare(files, arguments.abi, arguments.json)
    found = [inspect_module(file, files, arguments.android) for file in files]
    if arguments.json:
        import json

        print(json.dumps({"modules": [inspection.as_dict() for inspection in found]}, indent=2))
        return 0
    from pkvm_emu.inspect.text import TextReport

    is_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    reports = [
        TextReport(inspection, arguments.verbose, lambda text: f"{_BOLD}{text}{_PLAIN}" if is_terminal else text).text()
        for inspection in found
    ]
    sys.stdout.write("\n".join(reports))
    sys.stdout.flush()
    return 0


def _compare(files: Sequence[ModuleFile], wanted: str, as_json: bool) -> int:
    """Print what breaks on other generations; 1 where something does."""
    from pkvm_emu.inspect.abi import abi_breaks
    from pkvm_emu.testing.recipe import generations

    found = [(file, android, abi_breaks(file, android or "")) for file in files for android in generations(wanted)]
    if as_json:
        import json

        rows = [
            {"module": file.name, "android": android, "breaks": [one.as_dict() for one in breaks]}
            for file, android, breaks in found
        ]
        print(json.dumps({"abi": rows}, indent=2))
    else:
        for file, android, breaks in found:
            print(f"{file.name} on {android}: {len(breaks) or 'no'} ABI breaks")
            for one in breaks:
                print(f"  {one}")
    return int(any(breaks for _, _, breaks in found))
