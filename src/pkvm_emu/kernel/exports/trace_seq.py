"""Text under construction: ``trace_seq`` and ``seq_buf`` (``kernel/trace/trace_seq.c``, ``lib/seq_buf.c``)."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from pkvm_emu.kernel.exports.format import va_list
from pkvm_emu.kernel.guest_access import load, load_string, load_u32, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U8, U64, Ptr, VarArgs


class SeqBuf(NamedTuple):
    """A ``struct seq_buf``: where its text goes, the room for it, and how much there is (more than ``size``: overflow)."""

    buffer: int
    size: int
    length: int


def seq_of(kernel: Kernel, trace_seq: int) -> int:
    """Address of the ``struct seq_buf`` inside a ``struct trace_seq``; one that is all zeros is made ready."""
    offset, size = line_facts(kernel.generation.kernel).trace_seq_buffer
    seq = trace_seq + offset
    if not any(load(kernel, seq, 16)):
        store(kernel, seq, struct.pack("<QQQ", trace_seq, size, 0))
    return seq


def read_seq(kernel: Kernel, seq: int) -> SeqBuf:
    """The fields of a ``struct seq_buf``."""
    return SeqBuf(*struct.unpack("<QQQ", load(kernel, seq, 24)))


def append(kernel: Kernel, seq: int, data: bytes, room_for_nul: bool) -> bool:
    """Add text if all of it fits; else mark the overflow. Returns whether it fitted."""
    buffer, size, length = read_seq(kernel, seq)
    if length + len(data) + room_for_nul <= size:
        store(kernel, buffer + length, data + b"\0" * room_for_nul)
        store_uint(kernel, seq + 16, length + len(data), 8)
        return True
    store_uint(kernel, seq + 16, size + 1, 8)
    return False


def _trace(kernel: Kernel, trace_seq: int, data: bytes, room_for_nul: bool = True) -> bool:
    """Add to a ``trace_seq``: all or nothing, and nothing more once it was full."""
    full = trace_seq + line_facts(kernel.generation.kernel).trace_seq_full
    if load_u32(kernel, full):
        return False
    seq = seq_of(kernel, trace_seq)
    length = read_seq(kernel, seq).length
    if append(kernel, seq, data, room_for_nul):
        return True
    store_uint(kernel, seq + 16, length, 8)
    store_uint(kernel, full, 1, 4)
    return False


def _formatted(kernel: Kernel, fmt: int, args: Any) -> bytes:
    return kernel.format(load_string(kernel, fmt), args).encode("latin-1")


@kernel_symbol("trace_seq_printf", runs_guest=True)
def trace_seq_printf(kernel: Kernel, seq: Ptr, fmt: Ptr, args: VarArgs) -> None:
    """Add formatted text."""
    _trace(kernel, seq, _formatted(kernel, fmt, args))


@kernel_symbol("trace_seq_vprintf", runs_guest=True)
def trace_seq_vprintf(kernel: Kernel, seq: Ptr, fmt: Ptr, args: Ptr) -> None:
    """The same with a ``va_list``."""
    _trace(kernel, seq, _formatted(kernel, fmt, va_list(kernel, args)))


@kernel_symbol("trace_seq_puts", runs_guest=True)
def trace_seq_puts(kernel: Kernel, seq: Ptr, text: Ptr) -> None:
    """Add a string."""
    _trace(kernel, seq, load_string(kernel, text))


@kernel_symbol("trace_seq_putc", runs_guest=True)
def trace_seq_putc(kernel: Kernel, seq: Ptr, char: U8) -> None:
    """Add a character."""
    _trace(kernel, seq, bytes((char,)), room_for_nul=False)


@kernel_symbol("trace_seq_putmem", runs_guest=True)
def trace_seq_putmem(kernel: Kernel, seq: Ptr, data: Ptr, length: U64) -> None:
    """Add bytes."""
    _trace(kernel, seq, load(kernel, data, length), room_for_nul=False)


@kernel_symbol("seq_buf_printf", runs_guest=True)
def seq_buf_printf(kernel: Kernel, seq: Ptr, fmt: Ptr, args: VarArgs) -> int:
    """Add formatted text: 0, or -1 where it does not fit."""
    return 0 if append(kernel, seq, _formatted(kernel, fmt, args), True) else -1


@kernel_symbol("seq_buf_puts", runs_guest=True)
def seq_buf_puts(kernel: Kernel, seq: Ptr, text: Ptr) -> int:
    """Add a string: 0, or -1."""
    return 0 if append(kernel, seq, load_string(kernel, text), True) else -1


@kernel_symbol("seq_buf_putc", runs_guest=True)
def seq_buf_putc(kernel: Kernel, seq: Ptr, char: U8) -> int:
    """Add a character: 0, or -1."""
    return 0 if append(kernel, seq, bytes((char,)), False) else -1
