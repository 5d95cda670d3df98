"""Module parameter types: ``param_ops_*`` and the functions behind them (``kernel/params.c``)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EINVAL, ENOMEM, ENOSPC, EROFS
from typing import Any, NamedTuple

from pkvm_emu.kernel import guest_access
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.numbers import parse_bool, parse_integer
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import Ptr

PAGE_SIZE = 4096
OPS_SIZE = 32
_NOARG = 1
_ARG = 32
_ENTRY_SIZE = 40
_LEVEL_AND_FLAGS = 26
_CHARP_MAX = 1024
_SIMPLE_ROOM = PAGE_SIZE - 1


class IntegerType(NamedTuple):
    """One integer parameter type: bytes, signedness, and the conversion that reading it uses."""

    size: int
    signed: bool
    hexadecimal: bool = False


INTEGER_TYPES = {
    "byte": IntegerType(1, False),
    "short": IntegerType(2, True),
    "ushort": IntegerType(2, False),
    "int": IntegerType(4, True),
    "uint": IntegerType(4, False),
    "long": IntegerType(8, True),
    "ulong": IntegerType(8, False),
    "ullong": IntegerType(8, False),
    "hexint": IntegerType(4, False, True),
}


def ops_table(set_name: str | None, get_name: str | None, free_name: str | None = None, flags: int = 0) -> Any:
    """What makes the contents of a ``struct kernel_param_ops`` from the symbols of its functions."""

    def contents(kernel: Kernel) -> bytes:
        functions = [kernel.symbols.resolve(name) if name else 0 for name in (set_name, get_name, free_name)]
        return struct.pack("<IxxxxQQQ", flags, *functions)

    return contents


def _argument(kernel: Kernel, kp: int) -> int:
    return guest_access.load_u64(kernel, kp + _ARG)


def show(kernel: Kernel, buffer: int, text: str) -> int:
    """Write a parameter's text and its NUL into the page ``buffer``; the length is what its file gives."""
    data = text.encode("latin-1")
    guest_access.store(kernel, buffer, data[:_SIMPLE_ROOM] + b"\0")
    return min(len(data), _SIMPLE_ROOM)


def _register_integer(name: str, kind: IntegerType) -> None:
    def setter(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
        """Parse and store; -EINVAL for text that is no number, -ERANGE for one that does not fit."""
        if not val:
            return -EINVAL
        value = parse_integer(guest_access.load_string(kernel, val), 0, kind.size, kind.signed)
        if isinstance(value, int):
            return value
        guest_access.store_uint(kernel, _argument(kernel, kp), value.value, kind.size)
        return 0

    def getter(kernel: Kernel, buffer: Ptr, kp: Ptr) -> int:
        """The value in decimal (``0x`` hex for hexint) and a newline."""
        data = guest_access.load(kernel, _argument(kernel, kp), kind.size)
        value = int.from_bytes(data, "little", signed=kind.signed)
        # "%#08x": zeros up to a width of eight that counts the prefix.
        return show(kernel, buffer, f"{value:#08x}\n" if kind.hexadecimal else f"{value}\n")

    kernel_symbol(f"param_set_{name}", runs_guest=True)(setter)
    kernel_symbol(f"param_get_{name}", runs_guest=True)(getter)
    kernel_variable(f"param_ops_{name}", OPS_SIZE)(ops_table(f"param_set_{name}", f"param_get_{name}"))


for _name, _kind in INTEGER_TYPES.items():
    _register_integer(_name, _kind)


@kernel_symbol("param_set_uint_minmax", runs_guest=True)
def param_set_uint_minmax(kernel: Kernel, val: Ptr, kp: Ptr, low: Ptr, high: Ptr) -> int:
    """Store an ``unsigned int`` that has to lie between two bounds; -EINVAL outside."""
    if not val:
        return -EINVAL
    value = parse_integer(guest_access.load_string(kernel, val), 0, 4, False)
    if isinstance(value, int):
        return value
    if not low & 0xFFFF_FFFF <= value.value <= high & 0xFFFF_FFFF:
        return -EINVAL
    guest_access.store_uint(kernel, _argument(kernel, kp), value.value, 4)
    return 0


# Booleans


def _read_bool(kernel: Kernel, val: int) -> bool | None:
    """A boolean's text; no text at all means yes."""
    words = line_facts(kernel.generation.kernel).bool_words
    return True if not val else parse_bool(guest_access.load_string(kernel, val), words)


@kernel_symbol("param_set_bool", runs_guest=True)
def param_set_bool(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """Store a ``bool``; a bare name means true."""
    value = _read_bool(kernel, val)
    if value is None:
        return -EINVAL
    guest_access.store_uint(kernel, _argument(kernel, kp), value, 1)
    return 0


@kernel_symbol("param_get_bool", runs_guest=True)
def param_get_bool(kernel: Kernel, buffer: Ptr, kp: Ptr) -> int:
    """``Y`` or ``N``."""
    value = guest_access.load(kernel, _argument(kernel, kp), 1)[0]
    return show(kernel, buffer, "Y\n" if value else "N\n")


@kernel_symbol("param_set_bool_enable_only", runs_guest=True)
def param_set_bool_enable_only(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """As ``param_set_bool``, but what is on stays on: -EROFS."""
    value = _read_bool(kernel, val)
    if value is None:
        return -EINVAL
    address = _argument(kernel, kp)
    if not value and guest_access.load(kernel, address, 1)[0]:
        return -EROFS
    guest_access.store_uint(kernel, address, value or guest_access.load(kernel, address, 1)[0] & 1, 1)
    return 0


@kernel_symbol("param_set_invbool", runs_guest=True)
def param_set_invbool(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """Store the opposite of a boolean's text."""
    value = _read_bool(kernel, val)
    if value is None:
        return -EINVAL
    guest_access.store_uint(kernel, _argument(kernel, kp), not value, 1)
    return 0


@kernel_symbol("param_get_invbool", runs_guest=True)
def param_get_invbool(kernel: Kernel, buffer: Ptr, kp: Ptr) -> int:
    """``N`` for a stored true, ``Y`` for false."""
    value = guest_access.load(kernel, _argument(kernel, kp), 1)[0]
    return show(kernel, buffer, "N\n" if value else "Y\n")


@kernel_symbol("param_set_bint", runs_guest=True)
def param_set_bint(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """A boolean's text stored as an ``int`` of 0 or 1."""
    value = _read_bool(kernel, val)
    if value is None:
        return -EINVAL
    guest_access.store_uint(kernel, _argument(kernel, kp), value, 4)
    return 0


for _name, _getter, _flags in (
    ("bool", "param_get_bool", _NOARG),
    ("bool_enable_only", "param_get_bool", _NOARG),
    ("invbool", "param_get_invbool", 0),
    ("bint", "param_get_int", _NOARG),
):
    kernel_variable(f"param_ops_{_name}", OPS_SIZE)(ops_table(f"param_set_{_name}", _getter, flags=_flags))


# Strings


@kernel_symbol("param_set_charp", runs_guest=True)
def param_set_charp(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """Store a copy of the text; more than 1024 characters give -ENOSPC. The copy before is freed."""
    data = guest_access.load_string(kernel, val, _CHARP_MAX + 1)
    if len(data) > _CHARP_MAX:
        kernel.log.write(f"{_parameter_name(kernel, kp)}: string parameter too long", level=3)
        return -ENOSPC
    slab, slot = kernel.part(Slab), _argument(kernel, kp)
    _free_copy(kernel, guest_access.load_u64(kernel, slot))
    copy = slab.kmalloc(len(data) + 1)
    if copy is None:
        return -ENOMEM
    slab.parameter_copies[copy] = True
    kernel.memory.write(copy, data + b"\0")
    guest_access.store_uint(kernel, slot, copy, 8)
    return 0


def _free_copy(kernel: Kernel, address: int) -> None:
    # A default value is a string of the module's: only what a set function made is freed.
    slab = kernel.part(Slab)
    if address in slab.parameter_copies:
        del slab.parameter_copies[address]
        slab.kfree(address)


def _parameter_name(kernel: Kernel, kp: int) -> str:
    return guest_access.load_string(kernel, guest_access.load_u64(kernel, kp)).decode("latin-1")


@kernel_symbol("param_get_charp", runs_guest=True)
def param_get_charp(kernel: Kernel, buffer: Ptr, kp: Ptr) -> int:
    """The text and a newline; ``(null)`` where there is none."""
    pointer = guest_access.load_u64(kernel, _argument(kernel, kp))
    text = guest_access.load_string(kernel, pointer, PAGE_SIZE).decode("latin-1") if pointer else "(null)"
    return show(kernel, buffer, f"{text}\n")


@kernel_symbol("param_free_charp", runs_guest=True)
def param_free_charp(kernel: Kernel, arg: Ptr) -> None:
    """Free the copy that setting made."""
    _free_copy(kernel, guest_access.load_u64(kernel, arg))


@kernel_symbol("param_set_copystring", runs_guest=True)
def param_set_copystring(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """Copy the text into the module's own buffer; -ENOSPC where it does not fit."""
    if not val:
        return -EINVAL
    descriptor = _argument(kernel, kp)
    room = guest_access.load_u32(kernel, descriptor)
    data = guest_access.load_string(kernel, val)
    if len(data) + 1 > room:
        kernel.log.write(
            f"{_parameter_name(kernel, kp)}: string doesn't fit in {(room - 1) & 0xFFFFFFFF} chars.", level=3
        )
        return -ENOSPC
    guest_access.store(kernel, guest_access.load_u64(kernel, descriptor + 8), data + b"\0")
    return 0


@kernel_symbol("param_get_string", runs_guest=True)
def param_get_string(kernel: Kernel, buffer: Ptr, kp: Ptr) -> int:
    """The text of the module's buffer and a newline."""
    pointer = guest_access.load_u64(kernel, _argument(kernel, kp) + 8)
    return show(kernel, buffer, guest_access.load_string(kernel, pointer, PAGE_SIZE).decode("latin-1") + "\n")


kernel_variable("param_ops_charp", OPS_SIZE)(ops_table("param_set_charp", "param_get_charp", "param_free_charp"))
kernel_variable("param_ops_string", OPS_SIZE)(ops_table("param_set_copystring", "param_get_string"))


# Arrays: struct kparam_array { u32 max, elemsize; u32 *num; const struct kernel_param_ops *ops; void *elem; }


class _Array(NamedTuple):
    """A ``struct kparam_array`` as read from the module."""

    maximum: int
    element_size: int
    count_at: int
    ops: int
    elements: int


def _array(kernel: Kernel, kp: int) -> _Array:
    return _Array(*struct.unpack("<IIQQQ", guest_access.load(kernel, _argument(kernel, kp), OPS_SIZE)))


def _on_element(kernel: Kernel, kp: int, address: int, run: Callable[[int], int]) -> int:
    """Run with a copy of the ``struct kernel_param`` whose ``arg`` is one element."""
    slab = kernel.part(Slab)
    copy = slab.kmalloc(_ENTRY_SIZE)
    if copy is None:
        return -ENOMEM
    try:
        kernel.memory.write(copy, guest_access.load(kernel, kp, _ARG) + address.to_bytes(8, "little"))
        return run(copy)
    finally:
        slab.kfree(copy)


@kernel_symbol("pkvm_emu.param_array_set", runs_guest=True)
def param_array_set(kernel: Kernel, val: Ptr, kp: Ptr) -> int:
    """Set the elements from a list with commas; -EINVAL for too many or too few, else what an element's type says."""
    array = _array(kernel, kp)
    if not val:
        kernel.log.write(f"{_parameter_name(kernel, kp)}: expects arguments", level=3)
        return -EINVAL
    setter = guest_access.load_u64(kernel, array.ops + 8)
    data = guest_access.load_string(kernel, val)
    slab = kernel.part(Slab)
    text = slab.kmalloc(len(data) + 1)
    if text is None:
        return -ENOMEM
    done = 0
    try:
        for piece in data.split(b","):
            if done >= array.maximum:
                kernel.log.write(f"{_parameter_name(kernel, kp)}: can only take {array.maximum} arguments", level=3)
                return -EINVAL
            kernel.memory.write(text, piece + b"\0")
            target = array.elements + done * array.element_size
            result = _on_element(kernel, kp, target, lambda copy: kernel.call_s32(setter, text, copy))
            if result:
                return result
            done += 1
    finally:
        slab.kfree(text)
    if array.count_at:
        guest_access.store_uint(kernel, array.count_at, done, 4)
    return 0


@kernel_symbol("pkvm_emu.param_array_get", runs_guest=True)
def param_array_get(kernel: Kernel, buffer: Ptr, kp: Ptr) -> int:
    """The elements' texts with commas between them and one newline."""
    array = _array(kernel, kp)
    getter = guest_access.load_u64(kernel, array.ops + 16)
    count = guest_access.load_u32(kernel, array.count_at) if array.count_at else array.maximum
    length = 0
    for index in range(count):
        if index:
            kernel.memory.write(buffer + length - 1, b",")
        at = buffer + length
        element = array.elements + index * array.element_size
        result = _on_element(kernel, kp, element, lambda copy, at=at: kernel.call_s32(getter, at, copy))  # type: ignore[misc]  # mypy: lambda default
        if result < 0:
            return result
        length += result
    kernel.memory.write(buffer + length, b"\0")
    return length


@kernel_symbol("pkvm_emu.param_array_free", runs_guest=True)
def param_array_free(kernel: Kernel, arg: Ptr) -> None:
    """Free every element by its type's own function."""
    array = _Array(*struct.unpack("<IIQQQ", guest_access.load(kernel, arg, OPS_SIZE)))
    free = guest_access.load_u64(kernel, array.ops + 24)
    if free:
        count = guest_access.load_u32(kernel, array.count_at) if array.count_at else array.maximum
        for index in range(count):
            kernel.call(free, array.elements + index * array.element_size)


# The array type's functions are static in the kernel: reached through the table, never by name.
kernel_variable("param_array_ops", OPS_SIZE)(
    ops_table("pkvm_emu.param_array_set", "pkvm_emu.param_array_get", "pkvm_emu.param_array_free")
)
