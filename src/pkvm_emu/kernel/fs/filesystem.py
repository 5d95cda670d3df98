"""The tree of files, and the path operations on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EEXIST, EINVAL, ENOENT, EPERM
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.mounts import MOUNT_POINTS
from pkvm_emu.kernel.fs.node import (
    EACCES,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOTDIR,
    O_ACCMODE,
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_TRUNC,
    O_WRONLY,
    WOULD_BLOCK,
    Directory,
    File,
    FsError,
    Node,
    Symlink,
)
from pkvm_emu.kernel.fs.open_file import OpenFile
from pkvm_emu.kernel.fs.registry import PROVIDERS
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.machine.state import Journal, State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_NAME_MAX, _PATH_MAX = 255, 4096
#: More than this is not read as a whole: a driver may give data without end.
_WHOLE_MAX = 64 << 20
EFBIG = 27
#: So many symbolic links are followed on the way to one file (``MAXSYMLINKS``).
_LINKS_MAX = 40


@kernel_part
class FileSystem(State):
    """The files of one kernel (``system.fs``).

    >>> system.fs.read("/proc/cmdline")
    'kvm-arm.mode=protected\\n'
    >>> system.fs.write("/sys/module/pkvm_driver/parameters/call", "5\\n")
    2
    >>> system.fs.list("/sys/module/pkvm_driver/parameters")
    ['call']
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._own_journal = kernel.machine.journal
        super().__init__(kernel.machine.journal, "kernel.fs")
        self._root = MemoryDirectory(self._own_journal)
        # Tracked as an attribute so that a digest covers what files hold.
        self.root = self._root
        self.next_number = 3
        self.open_files: StateDict[int, OpenFile] = StateDict(self._own_journal)
        for mount in MOUNT_POINTS:
            errno = mount.create_errno
            self.add(mount.path, MemoryDirectory(self._own_journal, errno is None, mount.mode, errno or 0))
        for populate in PROVIDERS:
            populate(kernel, self)

    @property
    def journal(self) -> Journal:
        """The owner of everything here that changes."""
        return self._own_journal

    # Paths

    def resolve(self, path: str, follow: bool = True) -> Node:
        """The node that an absolute path leads to; a symbolic link at its end itself where ``follow`` is False.

        Raises:
            FsError: ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP.
        """
        return self._walk(path, follow)[-1]

    def find(self, path: str) -> Node | None:
        """The node at ``path``, or None."""
        try:
            return self.resolve(path)
        except FsError:
            return None

    def find_link(self, path: str) -> Node | None:
        """The node at ``path``, a symbolic link at its end itself; or None."""
        try:
            return self.resolve(path, follow=False)
        except FsError:
            return None

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``; missing directories are made, of the kind of the one above them."""
        parts = [part for part in path.split("/") if part]
        directory = self._root
        for part in parts[:-1]:
            below = directory.lookup(part)
            if below is None:
                below = directory.below()
                directory.add(part, below)
            if not isinstance(below, MemoryDirectory):
                raise FsError(ENOTDIR, path)
            directory = below
        directory.add(parts[-1], node)

    def discard(self, path: str) -> None:
        """Take what :meth:`add` put at ``path`` out again, with everything below it."""
        parent, name = self._parent(path)
        if isinstance(parent, MemoryDirectory):
            parent.discard(name)

    def _walk(self, path: str, follow: bool = True) -> list[Node]:
        if not path:
            raise FsError(ENOENT, path)
        if len(path) >= _PATH_MAX:
            raise FsError(ENAMETOOLONG, path)
        trail: list[Node] = [self._root]
        parts = path.split("/")[::-1]
        links = 0
        while parts:
            part = parts.pop()
            here = trail[-1]
            if not part:
                continue
            if not isinstance(here, Directory):
                raise FsError(ENOTDIR, path)
            if part == "..":
                trail = trail[:-1] or trail
                continue
            if part == ".":
                continue
            if len(part) > _NAME_MAX:
                raise FsError(ENAMETOOLONG, path)
            below = here.lookup(part)
            if below is None:
                raise FsError(ENOENT, path)
            if isinstance(below, Symlink) and (follow or any(parts)):
                links += 1
                if links > _LINKS_MAX:
                    raise FsError(ELOOP, path)
                if below.target.startswith("/"):
                    trail = [self._root]
                parts += below.target.split("/")[::-1]
                continue
            trail.append(below)
        if path.endswith("/") and not isinstance(trail[-1], Directory):
            raise FsError(ENOTDIR, path)
        return trail

    def _parent(self, path: str) -> tuple[Directory, str]:
        head, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise FsError(EEXIST, path)
        if len(name) > _NAME_MAX:
            raise FsError(ENAMETOOLONG, path)
        parent = self._walk(head or "/")[-1]
        if not isinstance(parent, Directory):
            raise FsError(ENOTDIR, path)
        return parent, name

    # Files

    def open(self, path: str, flags: int = O_RDONLY, mode: int = 0o644) -> OpenFile:
        """Open a file as root.

        Args:
            path: absolute path.
            flags: as of ``open(2)`` (``O_WRONLY | O_CREAT | O_TRUNC``, ...).
            mode: permission bits of a file that is created.

        Raises:
            FsError: what the kernel answers: ENOENT, EACCES (permission bits, in sysfs), EISDIR, ... or the node's own.
        """
        try:
            found = self.resolve(path)
        except FsError as error:
            if not path or error.errno != ENOENT or not flags & O_CREAT or path.endswith("/"):
                raise
            parent, name = self._parent(path)
            made = parent.create(name, mode)
            if isinstance(made, int):
                raise FsError(made, path) from None
            found = made
        else:
            if flags & O_CREAT and flags & O_EXCL:
                raise FsError(EEXIST, path)
        if not isinstance(found, File):
            raise FsError(EISDIR, path)
        self._check_mode(path, found, flags)
        handle = OpenFile(self, self.next_number, path, found, flags)
        self.next_number += 1
        result = found.open(handle)
        if result < 0:
            raise FsError(result, path)
        self.open_files[handle.number] = handle
        return handle

    @staticmethod
    def _check_mode(path: str, node: File, flags: int) -> None:
        access = flags & O_ACCMODE
        wants_read, wants_write = access != O_WRONLY, access != O_RDONLY
        if node.strict_mode and ((wants_read and not node.mode & 0o444) or (wants_write and not node.mode & 0o222)):
            raise FsError(EACCES, path)

    def is_open(self, handle: OpenFile) -> bool:
        """Whether ``handle`` is an open file of this state of the system."""
        # Going back to before the first look at any file unmakes all of this object's state.
        handles: StateDict[int, OpenFile] | None = self.__dict__.get("open_files")
        return handles is not None and handles.get(handle.number) is handle

    def forget(self, handle: OpenFile) -> None:
        """Drop a closed file."""
        del self.open_files[handle.number]

    # From Python

    def read_bytes(self, path: str) -> bytes:
        """What ``cat path`` would print; a file that blocks gives what it has now.

        Raises:
            FsError: the open or a read failed; EFBIG: the file has more than 64 MiB, or no end.
        """
        handle = self.open(path)
        out = bytearray()
        try:
            while True:
                chunk = handle.read()
                if chunk == WOULD_BLOCK:
                    return bytes(out)
                if isinstance(chunk, int):
                    raise FsError(chunk, path)
                if not chunk:
                    return bytes(out)
                out += chunk
                if len(out) > _WHOLE_MAX:
                    raise FsError(EFBIG, path)
        finally:
            handle.close()

    def read(self, path: str) -> str:
        """The same as text."""
        return self.read_bytes(path).decode("utf-8", "replace")

    def write(self, path: str, text: str | bytes) -> int:
        """What ``printf %s TEXT > path`` does; returns the number of bytes.

        Raises:
            FsError: the open or a write failed.
        """
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        handle = self.open(path, O_WRONLY | O_CREAT | O_TRUNC)
        try:
            position = 0
            while position < len(data):
                count = handle.write(data[position:])
                if count <= 0:
                    raise FsError(count or 5, path)
                position += count
            return position
        finally:
            handle.close()

    def list(self, path: str = "/") -> list[str]:
        """The names in a directory, sorted.

        Raises:
            FsError: ENOENT, ENOTDIR.
        """
        found = self.resolve(path)
        if not isinstance(found, Directory):
            raise FsError(ENOTDIR, path)
        return sorted(found.entries())

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory.

        Raises:
            FsError: EEXIST, EPERM, ...
        """
        if self.find(path) is not None:
            raise FsError(EEXIST, path)
        parent, name = self._parent(path)
        result = parent.mkdir(name, mode)
        if result < 0:
            raise FsError(result, path)

    def mknod(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Make a character device node, as ``mknod PATH c MAJOR MINOR`` does: opening it finds the driver of that number.

        Raises:
            FsError: EEXIST, EINVAL (a number that no device can have), EPERM (not below /dev or /tmp), ...
        """
        from pkvm_emu.kernel.fs.chrdevs import MINOR_MASK, DeviceNode

        if not 0 <= major < 1 << 12 or not 0 <= minor <= MINOR_MASK:
            raise FsError(EINVAL, path)
        if self.find(path) is not None:
            raise FsError(EEXIST, path)
        parent, name = self._parent(path)
        if not isinstance(parent, MemoryDirectory) or not parent.is_writable:
            raise FsError(EPERM, path)
        parent.add(name, DeviceNode(self._kernel, (major, minor), mode))

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory.

        Raises:
            FsError: ENOENT, ENOTEMPTY, EPERM, ...
        """
        self.resolve(path, follow=False)
        parent, name = self._parent(path)
        result = parent.remove(name)
        if result < 0:
            raise FsError(result, path)
