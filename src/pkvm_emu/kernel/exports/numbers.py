"""Numbers from text: ``kstrto*`` and ``simple_strto*`` (``lib/kstrtox.c``, ``lib/vsprintf.c``)."""

from __future__ import annotations

from errno import EFAULT, EINVAL

from pkvm_emu.kernel.exports.uaccess import user_bytes
from pkvm_emu.kernel.guest_access import load_string, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.numbers import digits, fix_radix, parse_bool, parse_integer
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U32, U64, Ptr

#: Function after ``kstrto``: bytes of the result, signedness.
_TYPES = {
    "ull": (8, False),
    "ll": (8, True),
    "ul": (8, False),
    "l": (8, True),
    "uint": (4, False),
    "int": (4, True),
    "u16": (2, False),
    "s16": (2, True),
    "u8": (1, False),
    "s8": (1, True),
}
#: Bytes that ``kstrto*_from_user`` reads at most: sign, 64 digits, newline and NUL.
_USER_LIMIT = 66


def _register(suffix: str, size: int, signed: bool) -> None:
    def convert(kernel: Kernel, s: Ptr, base: U32, result: Ptr) -> int:
        """0 and the number in ``*result``, -EINVAL or -ERANGE."""
        parsed = parse_integer(load_string(kernel, s), base, size, signed)
        if isinstance(parsed, int):
            return parsed
        store_uint(kernel, result, parsed.value, size)
        return 0

    def from_user(kernel: Kernel, s: Ptr, count: U64, base: U32, result: Ptr) -> int:
        """The same from user memory; -EFAULT where it is not mapped."""
        data = user_bytes(kernel, s, min(count, _USER_LIMIT - 1))
        if data is None:
            return -EFAULT
        parsed = parse_integer(data.partition(b"\0")[0], base, size, signed)
        if isinstance(parsed, int):
            return parsed
        store_uint(kernel, result, parsed.value, size)
        return 0

    name = f"kstrto{suffix}"
    # kstrtoul and kstrtol are inline over these on 64-bit kernels.
    names = {"ul": ("kstrtoul", "_kstrtoul"), "l": ("kstrtol", "_kstrtol")}.get(suffix, (name,))
    kernel_symbol(*names, runs_guest=True)(convert)
    kernel_symbol(f"{name}_from_user", runs_guest=True)(from_user)


for _suffix, (_size, _signed) in _TYPES.items():
    _register(_suffix, _size, _signed)


@kernel_symbol("kstrtobool", runs_guest=True)
def kstrtobool(kernel: Kernel, s: Ptr, result: Ptr) -> int:
    """0 and the boolean in ``*result``, or -EINVAL."""
    value = parse_bool(load_string(kernel, s), line_facts(kernel.generation.kernel).bool_words) if s else None
    if value is None:
        return -EINVAL
    store_uint(kernel, result, value, 1)
    return 0


@kernel_symbol("kstrtobool_from_user", runs_guest=True)
def kstrtobool_from_user(kernel: Kernel, s: Ptr, count: U64, result: Ptr) -> int:
    """The same of user memory (its first three bytes); -EFAULT where they are not there."""
    data = user_bytes(kernel, s, min(count, 3))
    if data is None:
        return -EFAULT
    value = parse_bool(data.partition(b"\0")[0], line_facts(kernel.generation.kernel).bool_words)
    if value is None:
        return -EINVAL
    store_uint(kernel, result, value, 1)
    return 0


@kernel_symbol("simple_strtoull", "simple_strtoul", runs_guest=True)
def simple_strtoull(kernel: Kernel, s: Ptr, end: Ptr, base: U32) -> int:
    """The number that the text begins with, cut to 64 bits; ``*end`` is the first place behind it."""
    base, skip = fix_radix(data := load_string(kernel, s), base)
    value, length = digits(data[skip:], base)
    if end:
        store_uint(kernel, end, s + skip + length, 8)
    return value


@kernel_symbol("simple_strtoll", "simple_strtol", runs_guest=True)
def simple_strtoll(kernel: Kernel, s: Ptr, end: Ptr, base: U32) -> int:
    """The same with a minus sign."""
    if load_string(kernel, s, 1) == b"-":
        return -simple_strtoull(kernel, s + 1, end, base)
    return simple_strtoull(kernel, s, end, base)


@kernel_symbol("memparse", runs_guest=True)
def memparse(kernel: Kernel, s: Ptr, end: Ptr) -> int:
    """A number with one of K, M, G, T, P, E behind it."""
    data = load_string(kernel, s)
    base, skip = fix_radix(data, 0)
    value, length = digits(data[skip:], base)
    length += skip
    power = b"KMGTPE".find(data[length : length + 1].upper()) + 1 if length < len(data) else 0
    if end:
        store_uint(kernel, end, s + length + (power > 0), 8)
    return value << 10 * power
