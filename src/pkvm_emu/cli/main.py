"""The ``pkvm-emu`` command: one subcommand a file, errors as one line, exit codes 0, 1, 2, 3."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pkvm_emu import __version__
from pkvm_emu.errors import PkvmEmuError, UsageError

#: Subcommand, module, one line of help. The module has ``configure(parser)`` and ``execute(arguments) -> int``.
COMMANDS = (
    ("run", "pkvm_emu.cli.run", "boot with a module, call its hypercalls, print what happened"),
    ("shell", "pkvm_emu.cli.shell", "boot with modules and type at the system: files, modules, hypercalls, dmesg"),
    ("gdb", "pkvm_emu.cli.gdb", "boot to a point and serve gdb or lldb there, at EL1 and EL2"),
    ("step", "pkvm_emu.cli.step", "boot to a point and step through the code here, forwards and backwards"),
    ("inspect", "pkvm_emu.cli.inspect", "show what a module binary is, calls and needs, without running it"),
    ("test", "pkvm_emu.cli.test", "run declarative cases (*.pkvm.toml): what to boot, do, and expect"),
    ("build", "pkvm_emu.cli.build", "build a module's sources (Makefile or DDK tree) into a .ko"),
    ("kdir", "pkvm_emu.cli.kdir", "print the directory to give as KDIR to the documented Makefile"),
    ("example", "pkvm_emu.cli.example", "copy the sample module's sources to start from"),
)

EXIT_OK, EXIT_MODULE, EXIT_USAGE, EXIT_EMULATOR = 0, 1, 2, 3
#: So much of an argument is quoted in a message.
_LONGEST_WORD = 200
_EPILOG = "exit codes: 0 fine, 1 the module failed, 2 wrong usage or input, 3 the emulator failed"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        sys.exit(EXIT_USAGE)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The argument parser; only ``command``'s own module is imported (all of them for None)."""
    parser = _Parser(prog="pkvm-emu", description="Run Android pKVM vendor modules at EL1 and EL2.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"pkvm-emu {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, module, text in COMMANDS:
        sub = commands.add_parser(name, help=text, description=text, epilog=_EPILOG)
        if command in (name, None):
            importlib.import_module(module).configure(sub)
    return parser


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The arguments; modules and their parameters may stand between and behind options."""
    parsed, others = parser.parse_known_args(words)
    if others:
        if any(word.startswith("-") for word in others) or not isinstance(getattr(parsed, "modules", None), list):
            text = " ".join(map(_shortened, others))
            raise UsageError(f"unrecognized arguments: {text} (see pkvm-emu {parsed.command} --help)")
        parsed.modules.extend(others)
    return parsed


def _shortened(word: str) -> str:
    shown = word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never lets an error escape as a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), "")
    try:
        parsed = _parse(build_parser(command), words)
        module = next(module for name, module, _ in COMMANDS if name == parsed.command)
        return int(importlib.import_module(module).execute(parsed))
    except PkvmEmuError as error:
        if error.exit_code == EXIT_EMULATOR and os.environ.get("PKVM_EMU_TRACEBACK"):
            raise
        sys.stdout.flush()
        sys.stderr.write(f"pkvm-emu: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`| head`): not an error of ours, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        sys.stderr.write("pkvm-emu: interrupted\n")
        return EXIT_MODULE
    except OSError as error:
        if error.filename is not None:
            sys.stderr.write(f"pkvm-emu: {_shortened(os.fsdecode(error.filename))}: {error.strerror}\n")
            return EXIT_USAGE
        # The disk is full, for example. What is buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(f"pkvm-emu: the output cannot be written: {error.strerror or error}\n")
        return EXIT_USAGE
    except Exception as error:
        if os.environ.get("PKVM_EMU_TRACEBACK"):
            raise
        name = type(error).__name__
        sys.stderr.write(
            f"pkvm-emu: internal error: {name}: {error} (set PKVM_EMU_TRACEBACK=1 for the place, and please report it)\n"
        )
        return EXIT_EMULATOR


def run() -> None:
    """Entry point of the console script."""
    # A caller may have closed them (`>&-`): what is written there is not wanted.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it lives as long as the process)
    # What the locale has no character for.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())


if __name__ == "__main__":
    run()
