"""Files of one number with a getter and a setter (``fs/libfs.c``): ``DEFINE_SIMPLE_ATTRIBUTE``, ``DEFINE_DEBUGFS_ATTRIBUTE``."""

from __future__ import annotations

from errno import EACCES, EFAULT, ENOMEM

from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.exports.file_ops import simple_read_from_buffer
from pkvm_emu.kernel.exports.uaccess import user_bytes
from pkvm_emu.kernel.guest_access import load_string, load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.numbers import parse_integer
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.kernel.varargs import ValueArgs
from pkvm_emu.machine.calling import U64, Ptr

#: struct simple_attr: get, set, get_buf[24], set_buf[24], data, fmt, mutex. ``_VALUE`` is room for the getter's answer.
_GET, _SET, _GET_BUF, _SET_BUF, _DATA, _FMT, _VALUE = 0, 8, 16, 40, 64, 72, 128
_BYTES, _BUFFER = 136, 24


def _attribute(kernel: Kernel, file: int) -> int:
    return load_u64(kernel, file + file_structs(kernel.generation.kernel).file.private_data)


@kernel_symbol("simple_attr_open", runs_guest=True)
def simple_attr_open(kernel: Kernel, inode: Ptr, file: Ptr, getter: Ptr, setter: Ptr, fmt: Ptr) -> int:
    """Remember the functions; 0 or -ENOMEM."""
    rows = file_structs(kernel.generation.kernel)
    attribute = kernel.part(Slab).kmalloc(_BYTES, line_facts(kernel.generation.kernel).gfp_zero)
    if attribute is None:
        return -ENOMEM
    data = load_u64(kernel, inode + rows.inode.i_private)
    for offset, value in ((_GET, getter), (_SET, setter), (_DATA, data), (_FMT, fmt)):
        store_uint(kernel, attribute + offset, value, 8)
    store_uint(kernel, file + rows.file.private_data, attribute, 8)
    # nonseekable_open()
    mode = file + rows.file.f_mode
    kernel.memory.write_u32(mode, kernel.memory.read_u32(mode) & ~0x1C)
    return 0


@kernel_symbol("simple_attr_release", runs_guest=True)
def simple_attr_release(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """Forget them; 0."""
    kernel.part(Slab).kfree(_attribute(kernel, file), "simple_attr_release")
    return 0


@kernel_symbol("simple_attr_read", "debugfs_attr_read", runs_guest=True)
def simple_attr_read(kernel: Kernel, file: Ptr, buf: Ptr, count: U64, ppos: Ptr) -> int:
    """Print what the getter gives by the format, once a reader; -EACCES without a getter."""
    attribute = _attribute(kernel, file)
    getter = load_u64(kernel, attribute + _GET)
    if not getter:
        return -EACCES
    known = load_string(kernel, attribute + _GET_BUF, _BUFFER)
    if not (load_u64(kernel, ppos) and known):
        result = kernel.call_s32(getter, load_u64(kernel, attribute + _DATA), attribute + _VALUE)
        if result:
            return result
        value = load_u64(kernel, attribute + _VALUE)
        fmt = load_string(kernel, load_u64(kernel, attribute + _FMT))
        known = kernel.format(fmt, ValueArgs([value])).encode("latin-1")[: _BUFFER - 1]
        kernel.memory.write(attribute + _GET_BUF, known + b"\0")
    return simple_read_from_buffer(kernel, buf, count, ppos, attribute + _GET_BUF, len(known))


def _write(kernel: Kernel, file: int, buf: int, count: int, signed: bool) -> int:
    attribute = _attribute(kernel, file)
    setter = load_u64(kernel, attribute + _SET)
    if not setter:
        return -EACCES
    size = min(count, _BUFFER - 1)
    data = user_bytes(kernel, buf, size)
    if data is None:
        return -EFAULT
    text = data.partition(b"\0")[0]
    value = parse_integer(text, 0, 8, signed)
    if isinstance(value, int):
        return value
    return kernel.call_s32(setter, load_u64(kernel, attribute + _DATA), value.value & (1 << 64) - 1) or count


@kernel_symbol("simple_attr_write", "debugfs_attr_write", runs_guest=True)
def simple_attr_write(kernel: Kernel, file: Ptr, buf: Ptr, count: U64, ppos: Ptr) -> int:
    """Give the setter a number; ``count``, -EINVAL (no number), -EFAULT, -EACCES (no setter), or its error."""
    return _write(kernel, file, buf, count, signed=False)


@kernel_symbol("simple_attr_write_signed", "debugfs_attr_write_signed", runs_guest=True)
def simple_attr_write_signed(kernel: Kernel, file: Ptr, buf: Ptr, count: U64, ppos: Ptr) -> int:
    """The same with negative numbers."""
    return _write(kernel, file, buf, count, signed=True)
