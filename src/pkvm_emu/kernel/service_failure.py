"""A Python function that serves a kernel symbol and fails: whose fault it is, and where."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from pkvm_emu.errors import EmulatorError, PkvmEmuError, UsageError
from pkvm_emu.kernel.guest_access import caller
from pkvm_emu.user_code import USER_FILE, one_line

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

#: What wrong arguments or a wrong function raise. Others (an ``assert`` of a test) go through.
FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, NameError, TypeError, ValueError, struct.error)


def service_failure(kernel: Kernel, name: str, registers: Sequence[int], error: Exception) -> PkvmEmuError:
    """The error to raise instead.

    Args:
        kernel: the kernel.
        name: the symbol.
        registers: the arguments.
        error: what was raised.
    """
    arguments = ", ".join(f"x{index}={value:#x}" for index, value in enumerate(registers))
    call = f"{name}({arguments}), called from {caller(kernel)}"
    text = f"{type(error).__name__}: {one_line(error)}"
    place = _place_of_user(error.__traceback__)
    if place is not None:
        return UsageError(f"{place}: {text}, in {call}")
    return EmulatorError(
        f"{call}, failed in the emulator: {text} (set PKVM_EMU_TRACEBACK=1 for the place, and please report it)"
    )


def _place_of_user(traceback: TracebackType | None) -> str | None:
    """File and line of the innermost frame of a file that a user gave."""
    place = None
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == USER_FILE:
            place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place
