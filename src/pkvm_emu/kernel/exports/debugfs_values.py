"""debugfs files of plain values that the kernel reads and writes (``fs/debugfs/file.c``)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EACCES, EINVAL, EPERM

from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.exports.io import device_load
from pkvm_emu.kernel.fs.debugfs import Debugfs
from pkvm_emu.kernel.fs.node import TextFile
from pkvm_emu.kernel.guest_access import load, load_u64, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.numbers import parse_bool, parse_integer
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import S32, U16, Ptr

#: ``struct debugfs_regset32`` {regs, nregs, base, dev} of ``struct debugfs_reg32`` {name, offset}.
_REGSET_BASE, _REG_BYTES = 16, 16
_ANY_WRITE, _ANY_READ = 0o222, 0o444
#: A write to a number takes so much text at most.
_NUMBER_LIMIT = 23


def _number_file(kernel: Kernel, address: int, size: int, mode: int, fmt: str, signed: bool = False) -> TextFile:
    def show() -> str | int:
        value = int.from_bytes(load(kernel, address, size), "little", signed=signed)
        return format(value, fmt) + "\n" if mode & _ANY_READ else -EACCES

    def write(data: bytes) -> int:
        if not mode & _ANY_WRITE:
            return -EACCES
        value = parse_integer(data[:_NUMBER_LIMIT].partition(b"\0")[0], 0, 8, signed)
        if isinstance(value, int):
            return value
        store(kernel, address, (value.value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        return 0

    return TextFile(show, write, mode & 0o777)


def _serve(name: str, size: int, fmt: str, signed: bool = False) -> None:
    def create(kernel: Kernel, label: Ptr, mode: U16, parent: Ptr, value: Ptr) -> int:
        node = _number_file(kernel, value, size, mode, fmt, signed)
        return kernel.part(Debugfs).value(text(kernel, label), parent, node)

    create.__doc__ = f"A file of a number of {size} bytes, printed as ``{fmt}``; written numbers are cut to its size."
    kernel_symbol(f"debugfs_create_{name}", runs_guest=True)(create)


for _bytes in (1, 2, 4, 8):
    _serve(f"u{8 * _bytes}", _bytes, "d")
    _serve(f"x{8 * _bytes}", _bytes, f"#0{2 * _bytes + 2}x")
_serve("ulong", 8, "d")
_serve("size_t", 8, "d")
_serve("atomic_t", 4, "d", signed=True)


@kernel_symbol("debugfs_create_bool", runs_guest=True)
def debugfs_create_bool(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, value: Ptr) -> int:
    """A file that reads ``Y`` or ``N`` and takes what ``kstrtobool`` takes."""
    words = line_facts(kernel.generation.kernel).bool_words

    def write(data: bytes) -> int:
        wanted = parse_bool(data.partition(b"\0")[0], words)
        if not mode & _ANY_WRITE:
            return -EPERM
        if wanted is None:
            return -EINVAL
        store(kernel, value, bytes((wanted,)))
        return 0

    node = TextFile(lambda: "Y\n" if load(kernel, value, 1)[0] else "N\n", write, mode & 0o777)
    return kernel.part(Debugfs).value(text(kernel, name), parent, node)


def _read_only(kernel: Kernel, name: int, mode: int, parent: int, show: Callable[[], str | bytes]) -> int:
    node = TextFile(show, lambda data: -EINVAL, mode & 0o777)
    return kernel.part(Debugfs).value(text(kernel, name), parent, node)


@kernel_symbol("debugfs_create_str", runs_guest=True)
def debugfs_create_str(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, value: Ptr) -> int:
    """A file of the string behind a ``char **``."""

    def show() -> bytes:
        pointer = load_u64(kernel, value)
        return kernel.read_cstr(pointer) + b"\n" if pointer else b"\n"

    return _read_only(kernel, name, mode, parent, show)


@kernel_symbol("debugfs_create_blob", runs_guest=True)
def debugfs_create_blob(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, blob: Ptr) -> int:
    """A file of the bytes that a ``struct debugfs_blob_wrapper`` {data, size} describes."""

    def show() -> bytes:
        data, size = struct.unpack("<QQ", load(kernel, blob, 16))
        return load(kernel, data, size)

    def write(data: bytes) -> int:
        address, size = struct.unpack("<QQ", load(kernel, blob, 16))
        if not mode & _ANY_WRITE:
            return -EINVAL
        store(kernel, address, data[:size])
        return 0

    return kernel.part(Debugfs).value(text(kernel, name), parent, TextFile(show, write, mode & 0o644))


@kernel_symbol("debugfs_create_u32_array", runs_guest=True)
def debugfs_create_u32_array(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, array: Ptr) -> int:
    """A line of the numbers that a ``struct debugfs_u32_array`` {array, count} describes."""

    def show() -> str:
        address, count = struct.unpack("<QI", load(kernel, array, 12))
        return " ".join(str(value) for (value,) in struct.iter_unpack("<I", load(kernel, address, 4 * count))) + "\n"

    return _read_only(kernel, name, mode, parent, show)


def _registers(kernel: Kernel, registers: int, count: int, base: int, prefix: str = "") -> str:
    lines = []
    for index in range(count):
        label, offset = struct.unpack("<QQ", load(kernel, registers + index * _REG_BYTES, 16))
        value = device_load(kernel, base + offset, 4)
        lines.append(f"{prefix}{text(kernel, label)} = {value:#010x}\n")
    return "".join(lines)


@kernel_symbol("debugfs_create_regset32", runs_guest=True)
def debugfs_create_regset32(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, regset: Ptr) -> int:
    """A file of ``NAME = 0x00000000`` for each register of a device, read when somebody looks."""

    def show() -> str:
        registers, count = struct.unpack("<Qi", load(kernel, regset, 12))
        return _registers(kernel, registers, count, load_u64(kernel, regset + _REGSET_BASE))

    return _read_only(kernel, name, mode, parent, show)


@kernel_symbol("debugfs_print_regs32", runs_guest=True)
def debugfs_print_regs32(kernel: Kernel, seq: Ptr, registers: Ptr, count: S32, base: Ptr, prefix: Ptr) -> None:
    """The same into a seq_file."""
    from pkvm_emu.kernel.fs.seq import SeqFiles

    label = text(kernel, prefix) if prefix else ""
    for line in _registers(kernel, registers, count, base, label).splitlines(keepends=True):
        kernel.part(SeqFiles).append(seq, line.encode("latin-1"))


@kernel_variable("pkvm_emu_devm_seqfile_ops", 320)
def devm_seqfile_ops(kernel: Kernel) -> bytes:
    """The ``struct file_operations`` of ``debugfs_create_devm_seqfile``."""
    table = bytearray(320)
    offsets = file_structs(kernel.generation.kernel).operations
    for member, symbol in (
        ("open", "pkvm_emu_devm_seqfile_open"),
        ("read", "seq_read"),
        ("llseek", "seq_lseek"),
        ("release", "single_release"),
    ):
        struct.pack_into("<Q", table, offsets[member], kernel.symbols.resolve(symbol))
    return bytes(table)
