"""``pkvm-emu example``: a vendor module to start from."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from pkvm_emu.errors import UsageError

#: The sample for each layout of handlers: android14 passes them another struct.
_SAMPLE_OF_CONTEXT = {"kvm_cpu_context": "pkvm_driver_a14", "user_pt_regs": "pkvm_driver"}
_LEFT_BY_BUILDS = shutil.ignore_patterns("build-out", "*.ko", "*.o", "Module.symvers", "modules.order")


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``example``."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="where the sources go; it must not exist")
    parser.add_argument("--android", metavar="N", help="generation that the module is for: 14, 15, 16 (default 16)")


def examples_root() -> Path:
    """The directory with the example modules: that of the installed package, or of the source tree.

    Raises:
        UsageError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "modules", package.parents[1] / "modules"):
        if all((place / name).is_dir() for name in _SAMPLE_OF_CONTEXT.values()):
            return place
    raise UsageError(f"no example modules in {package / 'modules'}: reinstall pkvm-emu")


def copy_example(directory: Path, android: str | None = None) -> Path:
    """Copy the documented sample module (``docs/sample-module.md``).

    Args:
        directory: where to; it must not exist.
        android: the generation it is for; None: the newest.

    Returns:
        ``directory``.

    Raises:
        UsageError: the directory exists or cannot be made, or the generation is not known.
    """
    from pkvm_emu.abi.generation import generation

    source = examples_root() / _SAMPLE_OF_CONTEXT[generation(android).handler_context]
    if directory.exists():
        raise UsageError(f"{directory} exists: name a directory that does not")
    try:
        shutil.copytree(source, directory, ignore=_LEFT_BY_BUILDS)
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror or error}") from error
    return directory


def execute(arguments: argparse.Namespace) -> int:
    """Copy, and say what to do next."""
    directory = copy_example(arguments.directory, arguments.android)
    option = f" --android {arguments.android}" if arguments.android else ""
    print(f"{directory}: now try  pkvm-emu run {directory}{option} --call pkvm_driver_hyp_hvc:1,2")
    return 0
