"""A directory that stands in for a kernel tree: ``make -C KDIR M=$(pwd) modules`` builds a module with pkvm_emu.

Its Makefile calls this module again with the interpreter that made the directory. Intermediate files never reach the
module's tree: what is left there is what ``make clean`` removes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pkvm_emu.build.builder import BuildResult, build_modules, read_tree
from pkvm_emu.build.generation import find_generation
from pkvm_emu.build.report import ToolError
from pkvm_emu.build.symbols import symvers_text
from pkvm_emu.errors import PkvmEmuError, UsageError

SYMVERS = "Module.symvers"
ORDER = "modules.order"

_MAKEFILE = """\
# Written by pkvm_emu: builds the module in M without a kernel tree.
#   make -C <this directory> M=<module directory> [PKVM_EMU_GENERATION=android16-6.12] [CONFIG_X=y] [V=1] modules
PYTHON := {python}
M ?= $(KBUILD_EXTMOD)
options := '--generation=$(PKVM_EMU_GENERATION)' $(foreach name,$(filter CONFIG_%,$(.VARIABLES)),'$(name)=$($(name))')
symbols := $(foreach file,$(KBUILD_EXTRA_SYMBOLS),'--symbols=$(file)')

all: modules

modules:
\t@$(PYTHON) -m pkvm_emu.build.kdir modules '$(M)' '--verbose=$(V)' $(symbols) $(options)

clean:
\t@$(PYTHON) -m pkvm_emu.build.kdir clean '$(M)' $(options)

modules_install modules_prepare:
\t@echo 'pkvm_emu has no kernel tree: $@ does nothing here, the .ko is in M' >&2; exit 2

.PHONY: all modules clean modules_install modules_prepare
"""


def kdir(base: Path | None = None) -> Path:
    """The directory to give to a module's Makefile as ``KDIR``; it is made if need be.

    It lies below *base*, by default the user's cache directory, under a name that depends on the Python interpreter.
    Raises UsageError if it cannot be written.
    """
    text = _MAKEFILE.format(python=_make_quote(sys.executable))
    directory = (base or _cache_directory()) / f"kdir-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    makefile = directory / "Makefile"
    try:
        if not makefile.is_file() or makefile.read_text() != text:
            directory.mkdir(parents=True, exist_ok=True)
            temporary = directory / f"Makefile.{os.getpid()}"
            temporary.write_text(text)
            temporary.replace(makefile)
    except OSError as error:
        raise UsageError(
            f"cannot write {makefile}: {error.strerror}; set XDG_CACHE_HOME to a writable place"
        ) from error
    return directory


def make_modules(
    directory: Path, generation_name: str | None, config: dict[str, str], symbols: Sequence[Path] = ()
) -> tuple[BuildResult, ...]:
    """Build all modules of *directory* into it, as ``make modules`` does: the ``.ko`` files and the symbol list."""
    results = build_modules(directory, directory, generation_name, config, symbols=symbols)
    exports = {symbol: result.name for result in results for symbol in result.exports}
    (directory / SYMVERS).write_text(symvers_text(exports))
    (directory / ORDER).write_text("".join(f"{result.path.with_suffix('.o').name}\n" for result in results))
    return results


def clean_modules(directory: Path, generation_name: str | None, config: dict[str, str]) -> list[Path]:
    """Remove what make_modules left in *directory*, and its ``clean-files``; the files that were there."""
    plan = read_tree(directory, find_generation(generation_name), config)
    candidates = [
        *(directory / item.file_name for item in plan.modules),
        directory / SYMVERS,
        directory / ORDER,
        *plan.clean_files,
    ]
    removed = [path for path in dict.fromkeys(candidates) if path.is_file()]
    for path in removed:
        path.unlink()
    return removed


def main(arguments: Sequence[str]) -> int:
    """What the Makefile calls: ``modules DIRECTORY`` or ``clean DIRECTORY``, then options; the exit status."""
    goal, directory, *rest = arguments
    options = dict(
        word[2:].split("=", 1) for word in rest if word.startswith("--") and not word.startswith("--symbols=")
    )
    symbols = [Path(word.split("=", 1)[1]) for word in rest if word.startswith("--symbols=")]
    config = dict(word.split("=", 1) for word in rest if word.startswith("CONFIG_"))
    generation = options.get("generation") or None
    try:
        if not directory:
            raise UsageError("say which module to build: make -C KDIR M=DIRECTORY")
        if goal == "clean":
            clean_modules(Path(directory), generation, config)
            return 0
        results = make_modules(Path(directory), generation, config, symbols)
    except PkvmEmuError as error:
        if isinstance(error, ToolError) and error.output:
            print(error.output.rstrip("\n"), file=sys.stderr)
        print(f"pkvm-emu: {error}", file=sys.stderr)
        return error.exit_code
    print(results[-1].log, end="")
    if options.get("verbose", "") not in ("", "0"):
        print("\n".join(results[-1].commands))
    return 0


def _cache_directory() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "pkvm-emu"


def _make_quote(path: str) -> str:
    return "'" + path.replace("$", "$$").replace("#", "\\#").replace("'", "'\\''") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
