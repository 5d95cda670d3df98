"""Files and directories of the emulated kernel: what a node of the tree answers to open, read, write and lookup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EINVAL, EIO, ENODEV, EPERM
from pkvm_emu.errors import ModuleError

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.mapping import Mapping
    from pkvm_emu.kernel.fs.open_file import OpenFile

EACCES, EBADF, ENOTDIR, EISDIR, ENAMETOOLONG, ENOTEMPTY = 13, 9, 20, 21, 36, 39
ENOTTY, ENXIO, ELOOP = 25, 6, 40
#: What a read or write returns that has to wait (-EAGAIN); whoever can wait tries again, others get the errno.
WOULD_BLOCK = -11

O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE = 0, 1, 2, 3
O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NONBLOCK, FASYNC = 0o100, 0o200, 0o1000, 0o2000, 0o4000, 0o20000
SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2
POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLRDNORM, POLLWRNORM = 1, 2, 4, 8, 16, 0x40, 0x100
#: What a file answers to poll(2) that does not care: ``DEFAULT_POLLMASK``.
ALWAYS_READY = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM


class FsError(ModuleError):
    """A file operation that the emulated kernel refused; the attributes are those of an ``OSError``.

    Attributes:
        errno: positive number.
        strerror: its text.
        filename: the path, or an empty string.
    """

    def __init__(self, errno: int, filename: str = "") -> None:
        from pkvm_emu.abi.errno import errno_name, errno_text

        self.errno = abs(errno)
        self.strerror = errno_text(self.errno) or f"Unknown error {self.errno}"
        self.filename = filename
        where = f"{filename}: " if filename else ""
        super().__init__(f"{where}{self.strerror} ({errno_name(self.errno)})")


class Node:
    """Anything that a path leads to.

    Attributes:
        mode: permission bits.
        strict_mode: the bits bind root too, as in sysfs; elsewhere root may open anything.
        device: major and minor number of a device node.
    """

    mode: int = 0o444
    strict_mode: bool = False
    type_letter: str = "-"
    device: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """What ``ls -l`` shows as size; 0 for files whose contents are made when they are read."""
        return 0


class Symlink(Node):
    """A symbolic link.

    Args:
        target: what it says: an absolute path, or one seen from the directory that it is in.
    """

    mode = 0o777
    type_letter = "l"

    def __init__(self, target: str) -> None:
        self._target = target

    @property
    def target(self) -> str:
        """Where it leads."""
        return self._target

    @property
    def size(self) -> int:
        return len(self._target)


class File(Node):
    """A file. The defaults refuse; a subclass overrides what it can do.

    Numbers below zero are errnos. ``handle`` is the open file: its ``data`` keeps what belongs to one open.

    Attributes:
        moves_offset: reads and writes set ``handle.offset`` themselves.
    """

    moves_offset: bool = False

    def open(self, handle: OpenFile) -> int:
        """Called by each open, with ``handle.flags`` (``O_TRUNC`` among them); 0 or -errno."""
        return 0

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        """Up to ``size`` bytes, ``b""`` at the end, -errno, or :data:`WOULD_BLOCK` when nothing is there yet."""
        return -EINVAL

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        """One write system call; the number of bytes taken, or -errno."""
        return -EINVAL

    def seek(self, handle: OpenFile, offset: int, whence: int) -> int:
        """The new offset, or -errno; ``whence`` is 0 (from the start), 1 (from here) or 2 (from the end)."""
        base = {SEEK_SET: 0, SEEK_CUR: handle.offset, SEEK_END: self.size}.get(whence)
        return -EINVAL if base is None or base + offset < 0 else base + offset

    def ioctl(self, handle: OpenFile, command: int, argument: int | bytearray) -> int:
        """What the call returns, or -errno; a buffer is what the argument points at, read and written in place."""
        return -ENOTTY

    def poll(self, handle: OpenFile) -> int:
        """The ``POLL*`` bits that are true now."""
        return ALWAYS_READY

    def mmap(self, handle: OpenFile, length: int, offset: int, flags: int) -> Mapping | int:
        """Map ``length`` bytes from ``offset`` on, with the ``VM_*`` bits of the mapping; or -errno."""
        return -ENODEV

    def release(self, handle: OpenFile) -> None:
        """Called by the last close."""


class TextFile(File):
    """A file whose contents are made when a reader begins, as in procfs and sysfs.

    Args:
        show: gives the contents, or -errno; None: reading is -EIO.
        store: takes what one write passed, gives 0 (all taken) or -errno; None: writing is -EIO.
        mode: permission bits.
        strict: see :class:`Node`.
        limit: a write passes at most so many bytes at once (sysfs: a page).
    """

    def __init__(
        self,
        show: Callable[[], str | bytes | int] | None,
        store: Callable[[bytes], int] | None = None,
        mode: int = 0o444,
        strict: bool = False,
        limit: int = 4096,
    ) -> None:
        self._show = show
        self._store = store
        self.mode = mode
        self.strict_mode = strict
        self._limit = limit

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        if self._show is None:
            return -EIO
        if offset == 0 or "text" not in handle.data:
            text = self._show()
            if isinstance(text, int):
                return text
            handle.data["text"] = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        contents: bytes = handle.data["text"]
        return contents[offset : offset + size]

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        if self._store is None:
            return -EIO
        taken = data[: self._limit]
        return (self._store(taken) or len(taken)) if taken else 0


class Directory(Node):
    """A directory. A subclass says what is in it; creating and removing is refused unless it overrides that."""

    mode = 0o755
    type_letter = "d"

    def entries(self) -> Iterable[str]:
        """The names in it."""
        return ()

    def lookup(self, name: str) -> Node | None:
        """The node called ``name``, or None."""
        return None

    def create(self, name: str, mode: int) -> File | int:
        """Make a regular file (``O_CREAT``), or -errno."""
        return -EACCES

    def mkdir(self, name: str, mode: int) -> int:
        """Make a directory; 0 or -errno."""
        return -EPERM

    def remove(self, name: str) -> int:
        """Remove a file or an empty directory; 0 or -errno."""
        return -EPERM
