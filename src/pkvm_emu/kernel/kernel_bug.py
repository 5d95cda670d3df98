"""What a kernel prints and does when something in it is wrong: WARN, BUG, and the checks that end in one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.kernel.faults import KernelOops
from pkvm_emu.kernel.guest_access import caller

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_BRK_BUG = 0x3C << 26 | 1 << 25 | 0x800


def warn(kernel: Kernel, place: str, text: str = "") -> None:
    """A WARN in the kernel itself: its lines in the log, and the taint.

    Args:
        kernel: the kernel.
        place: file or function of the kernel that warns.
        text: the message, where the WARN has one.
    """
    pc = kernel.machine.engine.read("x30") - 4
    kernel.faults.text.warning("", f"{place} called from {kernel.describe(pc)}", pc, text)


def bug(kernel: Kernel, place: str, text: str = "") -> KernelOops:
    """A BUG in the kernel itself, to be raised.

    Args:
        kernel: the kernel.
        place: file or function of the kernel that has the BUG.
        text: the line that is printed before it.
    """
    if text:
        kernel.log.write(text, level=3)
    kernel.log.write(f"kernel BUG at {place}!", level=1)
    pc = kernel.machine.engine.read("pc")
    said = f"{text}: " if text else ""
    return KernelOops(f"{said}kernel BUG at {place}, called from {caller(kernel)}", _BRK_BUG, 0, pc)


def fortify_panic(kernel: Kernel, function: str, reason: int = 0) -> KernelOops:
    """The BUG of a fortified string function, to be raised.

    Args:
        kernel: the kernel.
        function: its name; empty where the caller passed ``reason``.
        reason: what ``fortify_panic()`` got: a string up to 6.6, a coded byte (function number << 1, write) in 6.12.
    """
    if not function:
        function = _reason(kernel, reason)
    return bug(kernel, "lib/string_helpers.c", f"detected buffer overflow in {function}")


#: ``enum fortify_func``: the order of include/linux/fortify-string.h.
_FORTIFY_NAMES = (
    *("strncpy", "strnlen", "strlen", "strscpy", "strlcat", "strcat", "strncat", "memset", "memcpy", "memmove"),
    *("memscan", "memcmp", "memchr", "memchr_inv", "kmemdup", "strcpy", "UNKNOWN"),
)


def _reason(kernel: Kernel, reason: int) -> str:
    if reason > 0xFFFF:
        return kernel.read_cstr(reason).decode("latin-1")
    return _FORTIFY_NAMES[min(reason >> 1 & 0x7F, len(_FORTIFY_NAMES) - 1)]
