"""Files and directories that live in memory: the root file system, /tmp, and directories that others hang nodes into."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EEXIST, ENOENT, ENOSPC
from pkvm_emu.kernel.fs.node import ENOTEMPTY, O_TRUNC, Directory, File, Node
from pkvm_emu.machine.state import Journal, State, StateDict, StateList

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile

#: A file in memory grows to this size; then writes get -ENOSPC.
MEMORY_FILE_LIMIT = 64 << 20


class MemoryFile(File, State):
    """A regular file: what was written is what is read. Appending costs one small journal record."""

    def __init__(self, journal: Journal, mode: int = 0o644, content: bytes = b"") -> None:
        State.__init__(self, journal)
        self.mode = mode
        self.length = len(content)
        self.chunks: StateList[bytes] = StateList(journal, initial=[content] if content else [])

    @property
    def size(self) -> int:
        return self.length

    @property
    def content(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks)

    def open(self, handle: OpenFile) -> int:
        if handle.flags & O_TRUNC and self.length:
            self.chunks.clear()
            self.length = 0
        return 0

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        return b"" if offset >= self.length else self.content[offset : offset + size]

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        if max(offset, 0) + len(data) > MEMORY_FILE_LIMIT:
            return -ENOSPC
        if offset == self.length:
            self.chunks.append(bytes(data))
        else:
            old = self.content.ljust(offset, b"\0")
            self.chunks.clear()
            self.chunks.append(old[:offset] + data + old[offset + len(data) :])
        self.length = max(self.length, offset + len(data))
        return len(data)


class MemoryDirectory(Directory, State):
    """A directory with its entries in memory.

    Args:
        journal: owner of the entries.
        writable: files and directories may be created in it by path (tmpfs, devtmpfs); otherwise only by ``add``.
        mode: permission bits.
        create_errno: what creating gives where it is not writable (sysfs, tracefs: EACCES; procfs: ENOENT).
    """

    def __init__(self, journal: Journal, writable: bool = True, mode: int = 0o755, create_errno: int = 13) -> None:
        State.__init__(self, journal)
        self._writable = writable
        self._create_errno = create_errno
        self.mode = mode
        self.nodes: StateDict[str, Node] = StateDict(journal)

    @property
    def is_writable(self) -> bool:
        """Whether files may be created in it by path."""
        return self._writable

    def entries(self) -> Iterable[str]:
        return iter(self.nodes)

    def lookup(self, name: str) -> Node | None:
        return self.nodes.get(name)

    def add(self, name: str, node: Node) -> None:
        """Put a node in, in place of one of the same name."""
        self.nodes[name] = node

    def discard(self, name: str) -> None:
        """Take a node out, whatever is below it."""
        self.nodes.pop(name, None)

    def below(self) -> MemoryDirectory:
        """A new directory of the same kind."""
        return MemoryDirectory(self._journal, self._writable, self.mode, self._create_errno)

    def create(self, name: str, mode: int) -> File | int:
        if not self._writable:
            return -self._create_errno
        file = MemoryFile(self._journal, mode)
        self.nodes[name] = file
        return file

    def mkdir(self, name: str, mode: int) -> int:
        if name in self.nodes:
            return -EEXIST
        if not self._writable:
            return -self._create_errno
        self.nodes[name] = self.below()
        return 0

    def remove(self, name: str) -> int:
        node = self.nodes.get(name)
        if node is None:
            return -ENOENT
        if not self._writable:
            return -1
        if isinstance(node, Directory) and any(True for _ in node.entries()):
            return -ENOTEMPTY
        del self.nodes[name]
        return 0

    _journal: Journal
