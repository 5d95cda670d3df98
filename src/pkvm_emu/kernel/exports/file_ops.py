"""File operations that drivers take from the kernel (``fs/{read_write,libfs,open,fcntl}.c``)."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENXIO, ESPIPE

from pkvm_emu.abi.errno import ENOMEM, to_signed
from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.exports.uaccess import copy_from_user, copy_to_user
from pkvm_emu.kernel.fs.guest_file import (
    FMODE_ATOMIC_POS,
    FMODE_LSEEK,
    FMODE_PREAD,
    FMODE_PWRITE,
    FMODE_STREAM,
)
from pkvm_emu.kernel.guest_access import load, load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import S32, S64, U64, Ptr

_SET, _CUR, _END, _DATA, _HOLE = range(5)
_MASK64 = (1 << 64) - 1
_LARGEST = (1 << 63) - 1


# Seeking


def _position(kernel: Kernel, file: int) -> int:
    """Address of ``f_pos``."""
    return file + file_structs(kernel.generation.kernel).file.f_pos


def _inode_size(kernel: Kernel, file: int) -> int:
    rows = file_structs(kernel.generation.kernel)
    inode = load_u64(kernel, file + rows.file.f_inode)
    return load_u64(kernel, inode + rows.inode.i_size)


def _seek(kernel: Kernel, file: int, offset: int, whence: int, limit: int, end: int) -> int:
    """The rules of ``generic_file_llseek_size``: ``limit`` is the largest offset, ``end`` the end of the file."""
    place = _position(kernel, file)
    current = to_signed(load_u64(kernel, place), 64)
    if whence == _END:
        offset += end
    elif whence == _CUR:
        if offset == 0:
            return current
        offset += current
    elif whence in (_DATA, _HOLE):
        if not 0 <= offset < end:
            return -ENXIO
        offset = end if whence == _HOLE else offset
    elif whence != _SET:
        return -EINVAL
    if not 0 <= offset <= limit:
        return -EINVAL
    store_uint(kernel, place, offset, 8)
    return offset


@kernel_symbol("no_llseek")
def no_llseek(kernel: Kernel, file: Ptr, offset: S64, whence: S32) -> int:
    """-ESPIPE."""
    return -ESPIPE


@kernel_symbol("noop_llseek", runs_guest=True)
def noop_llseek(kernel: Kernel, file: Ptr, offset: S64, whence: S32) -> int:
    """The position stays."""
    return load_u64(kernel, _position(kernel, file))


@kernel_symbol("generic_file_llseek", "default_llseek", runs_guest=True)
def generic_file_llseek(kernel: Kernel, file: Ptr, offset: S64, whence: S32) -> int:
    """Seek in a file of ``i_size`` bytes; offsets beyond its end are fine."""
    return _seek(kernel, file, offset, whence, _LARGEST, _inode_size(kernel, file))


@kernel_symbol("generic_file_llseek_size", runs_guest=True)
def generic_file_llseek_size(kernel: Kernel, file: Ptr, offset: S64, whence: S32, limit: S64, end: S64) -> int:
    """The same with the largest offset and the end given."""
    return _seek(kernel, file, offset, whence, limit, end)


@kernel_symbol("fixed_size_llseek", runs_guest=True)
def fixed_size_llseek(kernel: Kernel, file: Ptr, offset: S64, whence: S32, size: S64) -> int:
    """Seek in a device of ``size`` bytes, not beyond its end."""
    return _seek(kernel, file, offset, whence, size, size) if whence in (_SET, _CUR, _END) else -EINVAL


@kernel_symbol("no_seek_end_llseek", runs_guest=True)
def no_seek_end_llseek(kernel: Kernel, file: Ptr, offset: S64, whence: S32) -> int:
    """Seek where there is no end."""
    return _seek(kernel, file, offset, whence, _LARGEST, 0) if whence in (_SET, _CUR) else -EINVAL


@kernel_symbol("no_seek_end_llseek_size", runs_guest=True)
def no_seek_end_llseek_size(kernel: Kernel, file: Ptr, offset: S64, whence: S32, size: S64) -> int:
    """The same with the largest offset."""
    return _seek(kernel, file, offset, whence, size, 0) if whence in (_SET, _CUR) else -EINVAL


# Opening


def _change_mode(kernel: Kernel, file: int, clear: int, add: int = 0) -> None:
    place = file + file_structs(kernel.generation.kernel).file.f_mode
    store_uint(kernel, place, load_u32(kernel, place) & ~clear | add, 4)


@kernel_symbol("nonseekable_open", runs_guest=True)
def nonseekable_open(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """No lseek, pread and pwrite from now on; 0."""
    _change_mode(kernel, file, FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE)
    return 0


@kernel_symbol("stream_open", runs_guest=True)
def stream_open(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """The same, and no position at all: ``read`` and ``write`` get NULL for it."""
    _change_mode(kernel, file, FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE | FMODE_ATOMIC_POS, FMODE_STREAM)
    return 0


@kernel_symbol("generic_file_open")
def generic_file_open(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """Large files are fine with 64-bit processes; 0."""
    return 0


@kernel_symbol("simple_open", runs_guest=True)
def simple_open(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """``file->private_data = inode->i_private``; 0."""
    rows = file_structs(kernel.generation.kernel)
    private = load_u64(kernel, inode + rows.inode.i_private)
    if private:
        store_uint(kernel, file + rows.file.private_data, private, 8)
    return 0


# Buffers


@kernel_symbol("simple_read_from_buffer", runs_guest=True)
def simple_read_from_buffer(kernel: Kernel, to: Ptr, count: U64, ppos: Ptr, source: Ptr, available: U64) -> int:
    """Give user space what a kernel buffer has at the position; bytes, 0 at the end, -EINVAL, -EFAULT."""
    position = to_signed(load_u64(kernel, ppos), 64)
    if position < 0:
        return -EINVAL
    if position >= available or not count:
        return 0
    count = min(count, available - position)
    left = copy_to_user(kernel, to, source + position, count)
    if left == count:
        return -EFAULT
    count -= left
    store_uint(kernel, ppos, position + count, 8)
    return count


@kernel_symbol("simple_write_to_buffer", runs_guest=True)
def simple_write_to_buffer(kernel: Kernel, to: Ptr, available: U64, ppos: Ptr, source: Ptr, count: U64) -> int:
    """Put user data into a kernel buffer at the position; bytes, 0 behind its end, -EINVAL, -EFAULT."""
    position = to_signed(load_u64(kernel, ppos), 64)
    if position < 0:
        return -EINVAL
    if position >= available or not count:
        return 0
    count = min(count, available - position)
    left = copy_from_user(kernel, to + position, source, count)
    if left == count:
        return -EFAULT
    count -= left
    store_uint(kernel, ppos, position + count, 8)
    return count


@kernel_symbol("memory_read_from_buffer", runs_guest=True)
def memory_read_from_buffer(kernel: Kernel, to: Ptr, count: U64, ppos: Ptr, source: Ptr, available: U64) -> int:
    """The same between kernel buffers."""
    position = to_signed(load_u64(kernel, ppos), 64)
    if position < 0:
        return -EINVAL
    if position >= available:
        return 0
    count = min(count, available - position)
    store(kernel, to, load(kernel, source + position, count))
    store_uint(kernel, ppos, position + count, 8)
    return count


# Signals of files: struct fasync_struct {lock 0; magic 4; fd 8; next 16; file 24}

_FASYNC_BYTES, _FASYNC_FD, _FASYNC_NEXT, _FASYNC_FILE = 56, 8, 16, 24


@kernel_symbol("fasync_helper", runs_guest=True)
def fasync_helper(kernel: Kernel, fd: S32, file: Ptr, on: S32, queue: Ptr) -> int:
    """Put a file on a driver's list of those that want SIGIO, or take it off; whether the list changed, or -ENOMEM."""
    place, entry = queue, load_u64(kernel, queue)
    while entry and load_u64(kernel, entry + _FASYNC_FILE) != file:
        place = entry + _FASYNC_NEXT
        entry = load_u64(kernel, place)
    if entry:
        if on:
            store_uint(kernel, entry + _FASYNC_FD, fd, 4)
            return 0
        store_uint(kernel, place, load_u64(kernel, entry + _FASYNC_NEXT), 8)
        kernel.part(Slab).kfree(entry, "fasync_helper")
        return 1
    if not on:
        return 0
    made = kernel.part(Slab).kmalloc(_FASYNC_BYTES, line_facts(kernel.generation.kernel).gfp_zero)
    if made is None:
        return -ENOMEM
    store_uint(kernel, made + _FASYNC_FD, fd, 4)
    store_uint(kernel, made + _FASYNC_FILE, file, 8)
    store_uint(kernel, made + _FASYNC_NEXT, load_u64(kernel, queue), 8)
    store_uint(kernel, queue, made, 8)
    return 1


@kernel_symbol("kill_fasync", runs_guest=True)
def kill_fasync(kernel: Kernel, queue: Ptr, signal: S32, band: S32) -> None:
    """Signal the files of a list: each open file keeps what it was sent (``handle.data["signals"]``)."""
    from pkvm_emu.kernel.fs.filesystem import FileSystem

    entry = load_u64(kernel, queue)
    by_file = {handle.data.get("file"): handle for handle in kernel.part(FileSystem).open_files.values()}
    while entry:
        handle = by_file.get(load_u64(kernel, entry + _FASYNC_FILE))
        if handle is not None:
            handle.data["signals"] = (*handle.data.get("signals", ()), (signal, band))
        entry = load_u64(kernel, entry + _FASYNC_NEXT)
