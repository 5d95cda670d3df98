"""``pkvm-emu shell``: a shell on the booted system, from a script or typed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pkvm_emu.cli import check_options, recording
from pkvm_emu.cli.boot_options import read_boot_plan
from pkvm_emu.cli.system_options import add_budget_option, add_system_options, make_system, read_profile
from pkvm_emu.errors import EmulatorError, ModuleError, PkvmEmuError, UsageError

if TYPE_CHECKING:
    from pkvm_emu.kernel.log import LogRecord
    from pkvm_emu.shell.session import Session
    from pkvm_emu.system import System

_TAIL_RECORDS = 64
_CONSOLE_LOGLEVEL = 7
_PROMPT, _CONTINUATION = "/ # ", "> "


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``shell``."""
    add_system_options(parser)
    add_budget_option(parser)
    check_options.add_watch_options(parser, "off")
    recording.configure(parser)
    parser.add_argument("--script", metavar="FILE", help="run this script and end with its status; - is standard input")
    parser.add_argument("--console", action="store_true", help="print the kernel log on standard error as it comes")


def execute(arguments: argparse.Namespace) -> int:
    """Boot, then run the script or read lines; the status is the script's, or 1 when the system dies."""
    from pkvm_emu.boot_flow import run_plan
    from pkvm_emu.shell.session import Session
    from pkvm_emu.system import choose_profile

    script = _read_script(arguments.script)
    profile = read_profile(arguments)
    plan = read_boot_plan(arguments, arguments.modules, arguments.system)
    profile = choose_profile(profile, plan.protected_files or plan.files)
    system = make_system(arguments, plan, profile)
    check_options.begin(arguments, system)
    recording.begin(arguments, system)
    console = Console(system) if arguments.console else None
    failure: PkvmEmuError | None = None
    try:
        run_plan(system, plan)
        for outcome in [*system.boot_report.outcomes, *system.boot_report.ordinary]:
            if outcome.status == "failed":
                _write_error(f"pkvm-emu: boot: {outcome.reason}\n".encode())
        session = Session(system, _write_output, _write_error, plan.files)
        try:
            status = session.run(script) if script is not None else _converse(session)
        finally:
            session.close()
    except (ModuleError, EmulatorError) as error:
        failure = error
        if console is None:
            _print_tail(system)
        raise
    finally:
        recording.finish(arguments, system, failure)
        for finding in system.contracts.findings if system.contracts is not None else ():
            _write_error(f"pkvm-emu: {finding}\n".encode())
    return status or int(system.contracts is not None and bool(system.contracts.errors))


class Console:
    """The kernel's console: prints records of level 0 to 6 on standard error."""

    def __init__(self, system: System) -> None:
        self._log = system.kernel.log
        self._seen = 0
        self._shown = ""
        for record in self._log:
            self._print(record)
        self._log.on_record = self.show

    def show(self, record: LogRecord) -> None:
        """Print a record, or what was appended to the newest one (KERN_CONT)."""
        is_new = len(self._log) != self._seen
        self._print(record if is_new else record._replace(text=record.text[len(self._shown) :]))
        self._seen, self._shown = len(self._log), record.text

    @staticmethod
    def _print(record: LogRecord) -> None:
        if record.level < _CONSOLE_LOGLEVEL:
            _write_error(f"{record}\n".encode("utf-8", "replace"))


def _read_script(name: str | None) -> str | None:
    """The script; None when lines are to be typed."""
    if name is None and sys.stdin.isatty():
        return None
    try:
        data = sys.stdin.buffer.read() if name in (None, "-") else Path(str(name)).read_bytes()
    except OSError as error:
        raise UsageError(f"--script {name}: {error.strerror}") from error
    return data.decode("utf-8", "surrogateescape")


def _write_output(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _write_error(data: bytes) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def _print_tail(system: System) -> None:
    """The end of the kernel log, as the console of a machine that died would show it."""
    records = list(system.kernel.log)[-_TAIL_RECORDS:]
    _write_error("".join(f"{record}\n" for record in records).encode("utf-8", "replace"))


# Typed lines


def _converse(session: Session) -> int:
    from pkvm_emu.shell.parser import Parser
    from pkvm_emu.shell.syntax import ShellSyntaxError

    _prepare_line_editing(session)
    text, status = "", 0
    while not session.exited:
        try:
            text += input(_CONTINUATION if text else _PROMPT) + "\n"
        except EOFError:
            sys.stdout.write("\n")
            break
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            text = ""
            continue
        try:
            parser = Parser(text)
            while parser.next_line() is not None:
                pass
        except ShellSyntaxError as error:
            if error.incomplete:
                continue
        status, text = _run_typed(session, text), ""
    return status


def _run_typed(session: Session, text: str) -> int:
    shell = session.shell
    try:
        status = session.run(text)
    except KeyboardInterrupt:
        if shell.system.machine.core.depth:
            raise
        sys.stdout.write("\n")
        return 130
    except PkvmEmuError as error:
        if isinstance(error, ModuleError):
            raise
        _write_error(f"{error}\n".encode())
        return 1
    return status


def _prepare_line_editing(session: Session) -> None:
    """History and completion, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    from pkvm_emu.shell.complete import completions

    found: list[str] = []

    def complete(_word: str, state: int) -> str | None:
        if state == 0:
            found[:] = completions(session.shell, readline.get_line_buffer()[: readline.get_endidx()])
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" \t\n;|&<>()\"'")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
