"""Python files of users (``--kernel``, ``--smc``, ``--mmio``): run, with what goes wrong in them as one line."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path
from typing import Any

from pkvm_emu.errors import PkvmEmuError, UsageError

#: ``__name__`` of such a file.
USER_FILE = "<run_path>"


def run_user_file(option: str, path: str | Path, run_name: str = USER_FILE) -> dict[str, Any]:
    """Run a file and give the names that it defines.

    Args:
        option: what it was given with, for messages.
        path: the file.
        run_name: its ``__name__``.

    Raises:
        UsageError: it is not there, or fails; the text has its line.
    """
    text = str(path)
    try:
        if not Path(path).is_file():
            raise UsageError(f"{option} {text}: there is no such file")
        return runpy.run_path(text, run_name=run_name)
    except PkvmEmuError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{text}:{_line(error, text)}" if _line(error, text) else text
        raise UsageError(f"{option} {where}: {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(error).split())


def _line(error: BaseException, path: str) -> int:
    """The line of the file where an error came from; 0 where it has none."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 0
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((frame.lineno or 0 for frame in frames if frame.filename == path), 0)
