"""Every failure a user can meet, as one line that says what, where and what to do.

Each class carries the exit code that the command line ends with:
1 the module under test failed, 2 the input or the usage is wrong, 3 the emulator itself failed.
"""

from __future__ import annotations


class PkvmEmuError(Exception):
    """Base of all errors that are printed as one line, without a traceback."""

    exit_code = 3


class UsageError(PkvmEmuError):
    """The call is wrong: a bad option, a file that cannot be read, a name nobody knows."""

    exit_code = 2


class InputError(UsageError):
    """An input file is not what it has to be (not an ELF, truncated, wrong machine, ...)."""


class ModuleError(PkvmEmuError):
    """The module under test did something that fails on a device too."""

    exit_code = 1


class BuildError(ModuleError):
    """A module's sources do not compile or link."""


class EmulatorError(PkvmEmuError):
    """The emulator cannot go on: a broken invariant of its own, or a host that lacks something."""
