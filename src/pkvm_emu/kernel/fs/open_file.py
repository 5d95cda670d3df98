"""An open file: position, flags and what its node keeps for this open; all of it goes back with a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pkvm_emu.kernel.fs.node import EBADF, O_ACCMODE, O_APPEND, O_RDONLY, O_WRONLY, File
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.filesystem import FileSystem


class OpenFile(State):
    """One open file description.

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
            return -EBADF
        result = self._node.read(self, self.offset, size)
        if isinstance(result, bytes) and result:
            self.offset += len(result)
        return result

    def write(self, data: bytes) -> int:
        """One write; the number of bytes taken, or -errno."""
        if not self.is_open or self.flags & O_ACCMODE == O_RDONLY:
            return -EBADF
        if self.flags & O_APPEND:
            self.offset = self._node.size
        count = self._node.write(self, self.offset, data)
        if count > 0:
            self.offset += count
        return count

    def close(self) -> None:
        """Close it; a second close does nothing."""
        if self.is_open:
            self._node.release(self)
            self._fs.forget(self)
