"""Variadic arguments as AArch64 code passes them (AAPCS64, sections "Parameter passing" and "The va_list type").

Only general registers are read: the kernel is compiled without floating point, so no variadic argument lives in a
vector register. Every argument takes one 8-byte slot; the upper half of a slot that holds an `int` is unspecified,
its reader masks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pkvm_emu.errors import ModuleError

MASK64 = (1 << 64) - 1
SLOT_BYTES = 8
ARGUMENT_REGISTERS = 8
"""x0..x7 carry arguments, what follows is on the stack."""

VA_LIST_BYTES = 32
_VA_STACK = 0
_VA_GR_TOP = 8
_VA_GR_OFFS = 24

ReadWord = Callable[[int], int]
"""address -> value, raising GuestFault where nothing is mapped"""
WriteWord = Callable[[int, int], None]
"""(address, value)"""


class ArgSource(Protocol):
    """Gives the variadic arguments of one call, in order."""

    def next_u64(self) -> int:
        """The next argument's slot as an unsigned 64-bit number."""
        ...


class RegisterArgs:
    """The arguments of a variadic call that has just been made.

    regs: the values of x0..x7 (more are ignored); first: the number of the first variadic register, that is the count
    of named arguments (1 for `_printk(fmt, ...)`); read_u64: reads a guest address; sp: the stack pointer at the
    call, in bytes.
    """

    __slots__ = ("_next", "_read_u64", "_regs", "_sp")

    def __init__(self, regs: Sequence[int], first: int, read_u64: ReadWord, sp: int) -> None:
        self._regs = regs
        self._next = first
        self._read_u64 = read_u64
        self._sp = sp

    def next_u64(self) -> int:
        index = self._next
        self._next = index + 1
        if index < ARGUMENT_REGISTERS:
            return self._regs[index] & MASK64
        return self._read_u64((self._sp + SLOT_BYTES * (index - ARGUMENT_REGISTERS)) & MASK64)


class VaListArgs:
    """The arguments behind a guest `va_list`, as `va_arg` walks them.

    The structure is {void *stack; void *gr_top; void *vr_top; int gr_offs; int vr_offs;}: a general argument is at
    gr_top + gr_offs while gr_offs is negative, then at *stack*. Without the two writers the guest's structure stays
    as it is, which is `va_copy` (and all a callee has to keep: a va_list is passed as a reference to the caller's
    copy). With them each step is written back.

    read_u64, read_u32: read a guest address; va_list_ptr: address of the structure; write_u64, write_u32: both or none.
    """

    __slots__ = ("_gr_offs", "_gr_top", "_read_u64", "_stack", "_va_list", "_write_u32", "_write_u64")

    def __init__(
        self,
        read_u64: ReadWord,
        read_u32: ReadWord,
        va_list_ptr: int,
        *,
        write_u64: WriteWord | None = None,
        write_u32: WriteWord | None = None,
    ) -> None:
        if (write_u64 is None) != (write_u32 is None):
            raise ValueError("VaListArgs takes write_u64 and write_u32 together")
        self._read_u64 = read_u64
        self._write_u64 = write_u64
        self._write_u32 = write_u32
        self._va_list = va_list_ptr
        self._stack = read_u64(va_list_ptr + _VA_STACK)
        self._gr_top = read_u64(va_list_ptr + _VA_GR_TOP)
        gr_offs = read_u32(va_list_ptr + _VA_GR_OFFS) & 0xFFFF_FFFF
        self._gr_offs = gr_offs - (1 << 32) if gr_offs >> 31 else gr_offs

    def next_u64(self) -> int:
        offset = self._gr_offs
        if offset < 0:
            self._gr_offs = offset + SLOT_BYTES
            if self._write_u32 is not None:
                self._write_u32(self._va_list + _VA_GR_OFFS, self._gr_offs & 0xFFFF_FFFF)
            # A save area that ends inside this slot means the argument was passed on the stack.
            if self._gr_offs <= 0:
                return self._read_u64((self._gr_top + offset) & MASK64)
        address = self._stack
        self._stack = (address + SLOT_BYTES) & MASK64
        if self._write_u64 is not None:
            self._write_u64(self._va_list + _VA_STACK, self._stack)
        return self._read_u64(address)


class ValueArgs:
    """Arguments that are known as numbers, as in a trace record.

    values: in order, negative ones as two's complement. Raises ModuleError when a format asks for more than there are.
    """

    __slots__ = ("_next", "_values")

    def __init__(self, values: Sequence[int]) -> None:
        self._values = values
        self._next = 0

    def next_u64(self) -> int:
        index = self._next
        if index >= len(self._values):
            raise ModuleError(
                f"format: it asks for argument {index + 1}, only {len(self._values)} are passed; "
                "correct the format or its arguments"
            )
        self._next = index + 1
        return self._values[index] & MASK64
