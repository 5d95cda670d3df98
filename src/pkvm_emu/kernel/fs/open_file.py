"""An open file: position, flags and what its node keeps for this open; all of it goes back with a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pkvm_emu.abi.errno import EINVAL
from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.fs.ioctl import FIONBIO
from pkvm_emu.kernel.fs.node import EBADF, O_ACCMODE, O_APPEND, O_NONBLOCK, O_RDONLY, O_WRONLY, File
from pkvm_emu.kernel.fs.result import FileResult
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from types import TracebackType

    from pkvm_emu.kernel.fs.filesystem import FileSystem
    from pkvm_emu.kernel.fs.mapping import Mapping

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE = 1, 2
#: VM_READ, VM_WRITE, VM_EXEC, then the same with VM_MAY*, and VM_SHARED (include/linux/mm.h).
_VM_SHARED, _VM_MAY_SHIFT = 8, 4
_PAGE_SIZE = 4096
_MASK64 = (1 << 64) - 1


class OpenFile(State):
    """One open file description.

    Calls return a :class:`FileResult`: a number, negative errnos with their names.

    Attributes:
        path: as it was opened.
        flags: ``O_RDONLY``, ``O_WRONLY``, ``O_RDWR`` with ``O_APPEND``, ``O_TRUNC``, ...
        offset: where the next read or write begins.
        data: what the node keeps for this open.
    """

    def __init__(self, fs: FileSystem, number: int, path: str, node: File, flags: int) -> None:
        super().__init__(fs.journal)
        self._fs = fs
        self._node = node
        self._number = number
        self.path = path
        self.flags = flags
        self.offset = 0
        self.data: StateDict[str, Any] = StateDict(fs.journal)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def number(self) -> int:
        """Its identity; not part of the state, so that a handle from a future that was undone can be told."""
        return self._number

    @property
    def node(self) -> File:
        """The file."""
        return self._node

    @property
    def is_open(self) -> bool:
        """False after :meth:`close`, and after going back to a snapshot from before the open."""
        return self._fs.is_open(self)

    def read(self, size: int = 65536) -> bytes | int:
        """The next bytes, ``b""`` at the end, ``WOULD_BLOCK``, or -errno."""
        if not self.is_open or self.flags & O_ACCMODE == O_WRONLY:
            return FileResult(-EBADF)
        if size < 0:
            return FileResult(-EINVAL)
        result = self._node.read(self, self.offset, size)
        if not isinstance(result, bytes):
            return FileResult(result)
        if result and not self._node.moves_offset:
            self.offset += len(result)
        return result

    def write(self, data: bytes) -> FileResult:
        """One write; the number of bytes taken, or -errno."""
        if not self.is_open or self.flags & O_ACCMODE == O_RDONLY:
            return FileResult(-EBADF)
        if self.flags & O_APPEND and not self._node.moves_offset:
            self.offset = self._node.size
        count = self._node.write(self, self.offset, data)
        if count > 0 and not self._node.moves_offset:
            self.offset += count
        return FileResult(count)

    def lseek(self, offset: int, whence: int = 0) -> FileResult:
        """Move the offset (``whence`` 0: from the start, 1: from here, 2: from the end); the new one, or -errno."""
        if not self.is_open:
            return FileResult(-EBADF)
        result = self._node.seek(self, offset, whence)
        if result >= 0 and not self._node.moves_offset:
            self.offset = result
        return FileResult(result)

    def ioctl(self, command: int, argument: int | bytes | bytearray = 0) -> FileResult:
        """Make an ioctl.

        Args:
            command: its number (see :mod:`pkvm_emu.kernel.fs.ioctl`).
            argument: a number; or what the argument points at: the bytes are put into user memory for the call. What the
                driver left there is in ``result.data``, and in the argument itself where that is a ``bytearray``.

        Returns:
            What the driver returned, or -errno (-ENOTTY: it does not know the command).
        """
        if not self.is_open:
            return FileResult(-EBADF)
        command &= 0xFFFF_FFFF
        if isinstance(argument, int):
            if command == FIONBIO:
                raise UsageError("FIONBIO takes a pointer to an int: pass bytes, (1).to_bytes(4, 'little')")
            return FileResult(self._node.ioctl(self, command, argument & _MASK64))
        buffer = argument if isinstance(argument, bytearray) else bytearray(argument)
        if command == FIONBIO:
            wanted = O_NONBLOCK if any(buffer[:4]) else 0
            self.flags = self.flags & ~O_NONBLOCK | wanted
            return FileResult(0, bytes(buffer))
        result = self._node.ioctl(self, command, buffer)
        return FileResult(result, bytes(buffer))

    def poll(self) -> FileResult:
        """The ``POLL*`` bits that are true now (1 readable, 4 writable, 8 error, ...); it does not wait."""
        return FileResult(self._node.poll(self) if self.is_open else -EBADF)

    def mmap(
        self, length: int, offset: int = 0, prot: int = PROT_READ | PROT_WRITE, flags: int = MAP_SHARED
    ) -> Mapping | FileResult:
        """Map the file into user memory.

        Args:
            length: bytes; rounded up to pages.
            offset: where in the file, a multiple of the page size.
            prot: ``PROT_READ`` 1, ``PROT_WRITE`` 2, ``PROT_EXEC`` 4.
            flags: ``MAP_SHARED`` 1 or ``MAP_PRIVATE`` 2.

        Returns:
            The mapping, or -errno.
        """
        if not self.is_open:
            return FileResult(-EBADF)
        if length <= 0 or offset % _PAGE_SIZE or flags not in (MAP_SHARED, MAP_PRIVATE) or prot & ~7:
            return FileResult(-EINVAL)
        writable = self.flags & O_ACCMODE != O_RDONLY
        if self.flags & O_ACCMODE == O_WRONLY or (flags == MAP_SHARED and prot & PROT_WRITE and not writable):
            return FileResult(-13)
        may = prot | PROT_READ | (PROT_WRITE if writable or flags == MAP_PRIVATE else 0)
        vm_flags = (
            prot | may << _VM_MAY_SHIFT | (_VM_SHARED | _VM_SHARED << _VM_MAY_SHIFT if flags == MAP_SHARED else 0)
        )
        result = self._node.mmap(self, -(-length // _PAGE_SIZE) * _PAGE_SIZE, offset, vm_flags)
        return FileResult(result) if isinstance(result, int) else result

    def close(self) -> None:
        """Close it; a second close does nothing."""
        if self.is_open:
            self._fs.forget(self)
            self._node.release(self)
