"""Files whose operations are a module's: open, read, write, lseek, ioctl, poll, mmap and close run in the guest.

The kernel's part (``fs/{open,read_write,ioctl,select,file_table}.c``) is here: ``struct inode`` and ``struct file`` with what
drivers read in them, the pin on the module that owns the operations, user memory for the buffers, and what is answered where a
driver has no operation. Subclasses say where the operations come from (a ``cdev``, debugfs, procfs).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping as Table
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import EINVAL, ENODEV, ENOMEM, to_signed
from pkvm_emu.abi.file_structs import DENTRY_BYTES, DENTRY_INODE, DENTRY_NAME, FileStructs, file_structs
from pkvm_emu.kernel.fs.ioctl import FIOASYNC
from pkvm_emu.kernel.fs.node import ALWAYS_READY, ENOTTY, ENXIO, FASYNC, O_ACCMODE, O_RDONLY, O_WRONLY, File
from pkvm_emu.kernel.fs.result import as_user_sees
from pkvm_emu.kernel.fs.user_memory import LARGEST_TRANSFER, UserMemory
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.slab import Slab

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.mapping import Mapping
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

ESPIPE = 29
_S_IFCHR, _S_IFREG = 0o020000, 0o100000
FMODE_READ, FMODE_WRITE, FMODE_LSEEK, FMODE_PREAD, FMODE_PWRITE = 1, 2, 4, 8, 16
_FMODE_CAN_READ, _FMODE_CAN_WRITE, _FMODE_OPENED = 1 << 17, 1 << 18, 1 << 19
FMODE_ATOMIC_POS, FMODE_STREAM = 1 << 15, 1 << 21
#: Behind a ``struct file``: the position that a call is given.
_POSITION_BYTES = 8
_POLL_TABLE_BYTES = 16
_KIOCB_BYTES, _KI_POS = 64, 8
_IOVEC_BYTES = 16
_MASK64 = (1 << 64) - 1


class Operations(NamedTuple):
    """A table of operations: its address, where each operation is in it, and the ``struct module *`` that are pinned."""

    address: int
    offsets: Table[str, int]
    owners: tuple[int, ...] = ()


class GuestFile(File):
    """Base of files with a module's operations.

    Args:
        kernel: where they run.
        mode: permission bits.
    """

    moves_offset = True
    #: errno where the owner of the operations is going away.
    gone_errno = ENODEV

    def __init__(self, kernel: Kernel, mode: int) -> None:
        self._kernel = kernel
        self.mode = mode

    # What subclasses say

    def operations(self, handle: OpenFile) -> Operations | int:
        """The operations for a new open, or -errno."""
        raise NotImplementedError

    def prepare(self, handle: OpenFile, inode: int, file: int) -> None:
        """Fill members of the new ``struct inode`` and ``struct file`` before the driver's ``open``."""

    def alive(self, handle: OpenFile) -> int:
        """0, or the errno of calls on an open file whose entry was removed."""
        return 0

    # Facts

    @property
    def structs(self) -> FileStructs:
        """The layouts of the kernel line."""
        return file_structs(self._kernel.generation.kernel)

    def file_of(self, handle: OpenFile) -> int:
        """Kernel VA of the ``struct file`` of an open file."""
        return int(handle.data["file"])

    def function(self, handle: OpenFile, name: str) -> int:
        """Address of an operation of an open file; 0 without."""
        offset = handle.data["offsets"].get(name)
        return 0 if offset is None else self._kernel.memory.read_u64(handle.data["operations"] + offset)

    # Opening and closing

    def open(self, handle: OpenFile) -> int:
        found = self.operations(handle)
        if isinstance(found, int):
            return found
        if not found.address:
            return -ENXIO
        modules = [self._kernel.loader.find(owner) for owner in found.owners if owner]
        pinned = [module for module in modules if module is not None]
        if any(module.status not in ("coming", "live") for module in pinned):
            return -self.gone_errno
        for module in pinned:
            module.references += 1
        handle.data["modules"] = tuple(module.name for module in pinned)
        handle.data["operations"], handle.data["offsets"] = found.address, found.offsets
        result = self._make_structs(handle) or self._call_open(handle)
        if result < 0:
            self._free_structs(handle)
            self._unpin(handle)
        return result

    def _call_open(self, handle: OpenFile) -> int:
        opener = self.function(handle, "open")
        result = self._kernel.call_s32(opener, handle.data["inode"], self.file_of(handle)) if opener else 0
        if result >= 0:
            handle.data["opened"] = True
        return min(as_user_sees(result), 0)

    def _make_structs(self, handle: OpenFile) -> int:
        """``struct inode``, ``struct dentry`` and ``struct file`` (with room for a position behind it)."""
        slab, memory, rows = self._kernel.part(Slab), self._kernel.memory, self.structs
        zero = line_facts(self._kernel.generation.kernel).gfp_zero
        name = handle.path.rpartition("/")[2].encode("utf-8", "surrogateescape") + b"\0"
        sizes = {
            "inode": rows.inode.size,
            "dentry": DENTRY_BYTES + len(name),
            "file": rows.file.size + _POSITION_BYTES,
        }
        for key, size in sizes.items():
            address = slab.kmalloc(size, zero)
            if address is None:
                return -ENOMEM
            handle.data[key] = address
        inode, dentry, file = (int(handle.data[key]) for key in sizes)
        kind = _S_IFCHR if self.device is not None else _S_IFREG
        memory.write(inode + rows.inode.i_mode, struct.pack("<H", kind | self.mode & 0o7777))
        memory.write(dentry + DENTRY_BYTES, name)
        memory.write_u64(dentry + DENTRY_NAME, dentry + DENTRY_BYTES)
        memory.write_u64(dentry + DENTRY_INODE, inode)
        layout = rows.file
        memory.write_u32(file + layout.f_flags, handle.flags)
        memory.write_u32(file + layout.f_mode, self._first_mode(handle))
        memory.write_u64(file + layout.f_op, handle.data["operations"])
        memory.write_u64(file + layout.f_inode, inode)
        memory.write_u64(file + layout.f_path + 8, dentry)
        memory.write_u64(file + layout.f_count, 1)
        if self.device is not None:
            memory.write_u32(inode + rows.inode.i_rdev, self.device[0] << 20 | self.device[1])
        self.prepare(handle, inode, file)
        return 0

    def _first_mode(self, handle: OpenFile) -> int:
        access = handle.flags & O_ACCMODE
        mode = FMODE_PREAD | FMODE_PWRITE | _FMODE_OPENED
        if access != O_WRONLY:
            mode |= FMODE_READ
        if access != O_RDONLY:
            mode |= FMODE_WRITE
        if mode & FMODE_READ and (self.function(handle, "read") or self.function(handle, "read_iter")):
            mode |= _FMODE_CAN_READ
        if mode & FMODE_WRITE and (self.function(handle, "write") or self.function(handle, "write_iter")):
            mode |= _FMODE_CAN_WRITE
        return mode | FMODE_LSEEK if self.function(handle, "llseek") else mode

    def _free_structs(self, handle: OpenFile) -> None:
        for key in ("file", "dentry", "inode"):
            address = handle.data.pop(key, 0)
            if address:
                self._kernel.part(Slab).kfree(address, "the close of a file")

    def _unpin(self, handle: OpenFile) -> None:
        for name in handle.data.pop("modules", ()):
            module = self._kernel.loader.modules.get(name)
            if module is not None and module.references:
                module.references -= 1

    def release(self, handle: OpenFile) -> None:
        if not handle.data.get("opened"):
            return
        file = self.file_of(handle)
        flush = self.function(handle, "flush")
        if flush and not self.alive(handle):
            self._kernel.call(flush, file, 0)
        if handle.flags & FASYNC:
            self._set_async(handle, False)
        self.finish(handle)
        self._free_structs(handle)
        self._unpin(handle)

    def finish(self, handle: OpenFile) -> None:
        """Call the driver's ``release``, once."""
        if handle.data.pop("opened", False):
            function = self.function(handle, "release")
            if function:
                self._kernel.call(function, handle.data["inode"], self.file_of(handle))

    # Calls

    def mode_of(self, handle: OpenFile) -> int:
        """``f_mode``, which drivers change in their ``open`` (``nonseekable_open``, ``stream_open``)."""
        return self._kernel.memory.read_u32(self.file_of(handle) + self.structs.file.f_mode)

    def _position(self, handle: OpenFile) -> int:
        """Kernel VA of the position for this call; 0 for a stream."""
        file = self.file_of(handle)
        self._kernel.memory.write_u32(file + self.structs.file.f_flags, handle.flags)
        if self.mode_of(handle) & FMODE_STREAM:
            return 0
        address = file + self.structs.file.size
        self._kernel.memory.write_u64(address, handle.offset)
        return address

    def _moved(self, handle: OpenFile, position: int) -> None:
        if position:
            handle.offset = to_signed(self._kernel.memory.read_u64(position), 64)
            self._kernel.memory.write_u64(self.file_of(handle) + self.structs.file.f_pos, handle.offset)

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        refused = self._refused(handle, _FMODE_CAN_READ)
        if refused:
            return refused
        size = min(size, LARGEST_TRANSFER)
        with self._kernel.part(UserMemory).buffer(size) as buffer:
            result = self._transfer(handle, "read", buffer, size)
            return self._kernel.memory.read(buffer, min(result, size)) if result > 0 else result or b""

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        refused = self._refused(handle, _FMODE_CAN_WRITE)
        if refused:
            return refused
        data = data[:LARGEST_TRANSFER]
        with self._kernel.part(UserMemory).buffer(len(data), data) as buffer:
            return self._transfer(handle, "write", buffer, len(data))

    def _refused(self, handle: OpenFile, needed: int) -> int:
        gone = self.alive(handle)
        return -gone if gone else 0 if self.mode_of(handle) & needed else -EINVAL

    def _transfer(self, handle: OpenFile, name: str, buffer: int, size: int) -> int:
        function = self.function(handle, name)
        if not function:
            return self._transfer_by_iterator(handle, name, buffer, size)
        position = self._position(handle)
        result = to_signed(self._kernel.call(function, self.file_of(handle), buffer, size, position), 64)
        if result >= 0:
            self._moved(handle, position)
        return as_user_sees(result)

    def _transfer_by_iterator(self, handle: OpenFile, name: str, buffer: int, size: int) -> int:
        """``read_iter`` and ``write_iter``, with a ``struct kiocb`` and a ``struct iov_iter`` over the buffer."""
        kernel, rows = self._kernel, self.structs.iter
        memory, zero = kernel.memory, line_facts(kernel.generation.kernel).gfp_zero
        block = kernel.part(Slab).kmalloc(_KIOCB_BYTES + rows.size + _IOVEC_BYTES, zero)
        if block is None:
            return -ENOMEM
        iterator = block + _KIOCB_BYTES
        vector = iterator + rows.size
        self._position(handle)
        memory.write(block, struct.pack("<QQ", self.file_of(handle), handle.offset & _MASK64))
        memory.write(iterator, bytes((rows.kind,)))
        memory.write(iterator + rows.data_source, bytes((name == "write",)))
        if rows.user_backed is not None:
            memory.write(iterator + rows.user_backed, b"\1")
        memory.write(vector, struct.pack("<QQ", buffer, size))
        memory.write_u64(iterator + rows.base, vector if rows.by_vector else buffer)
        memory.write_u64(iterator + rows.count, size)
        memory.write_u64(iterator + rows.nr_segs, 1)
        try:
            result = to_signed(kernel.call(self.function(handle, f"{name}_iter"), block, iterator), 64)
            if result >= 0:
                handle.offset = to_signed(memory.read_u64(block + _KI_POS), 64)
        finally:
            kernel.part(Slab).kfree(block)
        return as_user_sees(result)

    def seek(self, handle: OpenFile, offset: int, whence: int) -> int:
        gone = self.alive(handle)
        if gone:
            return -gone
        if not 0 <= whence <= 4:
            return -EINVAL
        function = self.function(handle, "llseek")
        if not function or not self.mode_of(handle) & FMODE_LSEEK:
            return -ESPIPE
        place = self.file_of(handle) + self.structs.file.f_pos
        self._kernel.memory.write_u64(place, handle.offset)
        result = to_signed(self._kernel.call(function, self.file_of(handle), offset & _MASK64, whence), 64)
        handle.offset = to_signed(self._kernel.memory.read_u64(place), 64)
        return as_user_sees(result)

    def ioctl(self, handle: OpenFile, command: int, argument: int | bytearray) -> int:
        gone = self.alive(handle)
        if gone:
            return -gone
        if command == FIOASYNC and not isinstance(argument, int):
            return self._set_async(handle, any(argument[:4]))
        function = self.function(handle, "unlocked_ioctl")
        if not function:
            return -ENOTTY
        self._position(handle)
        file = self.file_of(handle)
        if isinstance(argument, int):
            return as_user_sees(to_signed(self._kernel.call(function, file, command, argument), 64))
        with self._kernel.part(UserMemory).buffer(len(argument), argument) as buffer:
            result = to_signed(self._kernel.call(function, file, command, buffer), 64)
            argument[:] = self._kernel.memory.read(buffer, len(argument))
        return as_user_sees(result)

    def _set_async(self, handle: OpenFile, wanted: bool) -> int:
        if wanted == bool(handle.flags & FASYNC):
            return 0
        function = self.function(handle, "fasync")
        if not function:
            return -ENOTTY
        result = self._kernel.call_s32(function, handle.number if wanted else _MASK64, self.file_of(handle), wanted)
        if result >= 0:
            handle.flags = handle.flags & ~FASYNC | (FASYNC if wanted else 0)
        return min(as_user_sees(result), 0)

    def poll(self, handle: OpenFile) -> int:
        from pkvm_emu.kernel.fs.node import POLLERR, POLLHUP

        if self.alive(handle):
            return POLLERR | POLLHUP
        function = self.function(handle, "poll")
        if not function:
            return ALWAYS_READY
        table = self._kernel.part(Slab).kmalloc(_POLL_TABLE_BYTES)
        if table is None:
            return -ENOMEM
        try:
            # Without a queueing function poll_wait() does nothing: that is how the kernel asks when it does not wait.
            self._kernel.memory.write(table, struct.pack("<QQ", 0, 0xFFFF_FFFF))
            return self._kernel.call(function, self.file_of(handle), table) & 0xFFFF_FFFF
        finally:
            self._kernel.part(Slab).kfree(table)

    def mmap(self, handle: OpenFile, length: int, offset: int, flags: int) -> Mapping | int:
        from pkvm_emu.kernel.fs.mapping import map_file

        gone = self.alive(handle)
        if gone:
            return -gone
        function = self.function(handle, "mmap")
        if not function:
            return -ENODEV
        return map_file(self._kernel, handle, self.file_of(handle), function, length, offset, flags)
