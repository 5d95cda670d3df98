"""What a file descriptor of the shell refers to: a file of the system, a pipe, the host's terminal."""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.abi.errno import EIO, ENOMEM
from pkvm_emu.kernel.fs.node import EBADF, WOULD_BLOCK
from pkvm_emu.kernel.fs.open_file import OpenFile
from pkvm_emu.shell.jobs import SIGPIPE, KilledBySignal

#: A pipe holds so much before its writer waits (one write may go above it).
PIPE_CAPACITY = 65536
#: What one command may keep in memory.
MEMORY_LIMIT = 64 << 20


class ShellIOError(Exception):
    """A read or write that the system refused; ``errno`` is positive."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = abs(errno)


class Stream:
    """Base: refuses both directions. Shared between descriptors and processes by counting."""

    def __init__(self) -> None:
        self._references = 1

    def retain(self) -> Stream:
        """One more descriptor refers to it."""
        self._references += 1
        return self

    def release(self) -> None:
        """One fewer; the last one closes it."""
        self._references -= 1
        if self._references == 0:
            self.close()

    def close(self) -> None:
        """Nobody refers to it any more."""

    def has_room(self) -> bool:
        """Whether a write need not wait for a reader."""
        return True

    def read(self, size: int = 65536) -> bytes | int:
        """The next bytes, ``b""`` at the end, ``WOULD_BLOCK``.

        Raises:
            ShellIOError: the errno.
        """
        raise ShellIOError(EBADF)

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            ShellIOError: the errno.
            KilledBySignal: a pipe without a reader.
        """
        raise ShellIOError(EBADF)


class Empty(Stream):
    """At its end, as /dev/null is: the standard input of background jobs and scripts."""

    def read(self, size: int = 65536) -> bytes | int:
        return b""


class HostOutput(Stream):
    """The host's standard output or error."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        super().__init__()
        self._write = write

    def write(self, data: bytes) -> None:
        self._write(data)


class Collector(Stream):
    """Keeps what is written (``$(...)``)."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        if len(self.data) + len(data) > MEMORY_LIMIT:
            raise ShellIOError(ENOMEM)
        self.data += data


class Source(Stream):
    """Gives bytes that are known beforehand (here-documents)."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def read(self, size: int = 65536) -> bytes | int:
        chunk, self._data = self._data[:size], self._data[size:]
        return chunk


class FileStream(Stream):
    """An open file of the system."""

    def __init__(self, handle: OpenFile) -> None:
        super().__init__()
        self._handle = handle

    def close(self) -> None:
        self._handle.close()

    def read(self, size: int = 65536) -> bytes | int:
        result = self._handle.read(size)
        if isinstance(result, int) and result != WOULD_BLOCK:
            raise ShellIOError(result)
        return result

    def write(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            count = self._handle.write(data[position:])
            if count <= 0:
                raise ShellIOError(count or EIO)
            position += count


class Pipe:
    """Two ends with a buffer between them."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.reader = PipeReader(self)
        self.writer = PipeWriter(self)
        self.is_read = self.is_written = True


class PipeReader(Stream):
    """The end that reads; at the end of file once no writer is left."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def close(self) -> None:
        self._pipe.is_read = False

    def read(self, size: int = 65536) -> bytes | int:
        pipe = self._pipe
        if not pipe.buffer:
            return WOULD_BLOCK if pipe.is_written else b""
        chunk = bytes(pipe.buffer[:size])
        del pipe.buffer[:size]
        return chunk


class PipeWriter(Stream):
    """The end that writes; without a reader the writing process dies of SIGPIPE."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def close(self) -> None:
        self._pipe.is_written = False

    def has_room(self) -> bool:
        return not self._pipe.is_read or len(self._pipe.buffer) < PIPE_CAPACITY

    def write(self, data: bytes) -> None:
        if not self._pipe.is_read:
            raise KilledBySignal(SIGPIPE)
        self._pipe.buffer += data
