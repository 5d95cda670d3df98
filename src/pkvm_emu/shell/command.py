"""How commands get into the shell, and what they are given.

>>> @command("true", "", "succeed")
... def true(context: Context) -> int:
...     return 0

A command that can wait (a read of a pipe, ``sleep``) is a generator that yields what it waits for and returns its status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pkvm_emu.kernel.fs import WOULD_BLOCK, FsError
from pkvm_emu.shell.jobs import RUNNABLE, Steps, Wait
from pkvm_emu.shell.streams import MEMORY_LIMIT, FileStream, ShellIOError, Stream

if TYPE_CHECKING:
    from pkvm_emu.shell.interpreter import Shell
    from pkvm_emu.system import System

Result = int | Steps[int]
F = TypeVar("F", bound=Callable[["Context"], Result])


class CommandError(Exception):
    """Ends a command: the text is printed behind its name."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """A command: ``is_builtin`` ones are part of the shell, so their write errors carry its name."""

    name: str
    usage: str
    summary: str
    function: Callable[[Context], Result]
    is_builtin: bool


COMMANDS: dict[str, CommandInfo] = {}


def command(name: str, usage: str, summary: str, builtin: bool = False) -> Callable[[F], F]:
    """Make the decorated function the command ``name``.

    Args:
        name: what is typed.
        usage: its arguments, for ``help``.
        summary: a few words, for ``help``.
        builtin: see :class:`CommandInfo`.
    """

    def register(function: F) -> F:
        COMMANDS[name] = CommandInfo(name, usage, summary, function, builtin)
        return function

    return register


class Context:
    """What one run of a command works with.

    Attributes:
        shell: who runs it.
        name: as it was called.
        arguments: without the name.
    """

    def __init__(self, shell: Shell, name: str, arguments: list[str]) -> None:
        self.shell = shell
        self.name = name
        self.arguments = arguments

    @property
    def system(self) -> System:
        """The emulated system."""
        return self.shell.system

    def out(self, data: str | bytes) -> None:
        """Write to standard output, by one write."""
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        stream = self.shell.io.get(1)
        if stream is None:
            raise ShellIOError(9)
        if raw:
            stream.write(raw)

    def error(self, message: str) -> int:
        """Print ``name: message`` on standard error; returns 1, the usual status."""
        self.shell.complain(f"{self.name}: {message}")
        return 1

    def path(self, path: str) -> str:
        """A path made absolute."""
        return self.shell.absolute(path)

    def options(self, allowed: str, valued: str = "") -> tuple[dict[str, str], list[str]]:
        """Options (``-a``, ``-n 5``, ``-n5``) and operands.

        Raises:
            CommandError: an option that is in neither list.
        """
        found: dict[str, str] = {}
        words = list(self.arguments)
        while words and len(words[0]) > 1 and words[0].startswith("-"):
            word = words.pop(0)
            if word == "--":
                break
            position = 1
            while position < len(word):
                letter = word[position]
                position += 1
                if letter in valued:
                    value = word[position:] or (words.pop(0) if words else None)
                    if value is None:
                        raise CommandError(f"option requires an argument -- '{letter}'")
                    found[letter] = value
                    break
                if letter not in allowed:
                    raise CommandError(f"unrecognized option: {letter}")
                found[letter] = ""
        return found, words

    # Input

    def read(self, stream: Stream) -> Steps[bytes]:
        """The next bytes of ``stream``, however long that takes; ``b""`` at the end."""
        data = stream.read()
        while data == WOULD_BLOCK:
            fresh: list[bytes | int] = [WOULD_BLOCK]

            def ready(fresh: list[bytes | int] = fresh) -> bool:
                fresh[0] = stream.read()
                return fresh[0] != WOULD_BLOCK

            yield Wait(ready, on_file=isinstance(stream, FileStream))
            data = fresh[0]
        assert isinstance(data, bytes)
        return data

    def open(self, path: str) -> Stream:
        """Open a file to read, ``-`` being standard input; release it when done.

        Raises:
            FsError: the errno.
        """
        if path == "-":
            stream = self.shell.io.get(0)
            if stream is None:
                raise FsError(9, "-")
            return stream.retain()
        return FileStream(self.shell.fs.open(self.path(path)))

    def room(self) -> Steps[None]:
        """Let others run, and wait until standard output takes more."""
        stream = self.shell.io.get(1)
        yield Wait(stream.has_room) if stream is not None else RUNNABLE

    def whole(self, stream: Stream) -> Steps[bytes]:
        """All that a stream gives.

        Raises:
            CommandError: more than a command may keep.
        """
        data = bytearray()
        while chunk := (yield from self.read(stream)):
            data += chunk
            if len(data) > MEMORY_LIMIT:
                raise CommandError("out of memory")
            yield RUNNABLE
        return bytes(data)

    def lines(self, stream: Stream) -> Steps[list[bytes]]:
        """All lines of a stream, without their ends."""
        lines = (yield from self.whole(stream)).split(b"\n")
        return lines[:-1] if lines[-1] == b"" else lines

    def each_input(self, paths: list[str], message: str = "{path}: {error}") -> Steps[list[tuple[str, list[bytes]]]]:
        """(path, lines) of every input that can be read; the others are complained about and set ``failed``."""
        found: list[tuple[str, list[bytes]]] = []
        self.failed = False
        for path in paths or ["-"]:
            try:
                stream = self.open(path)
            except FsError as error:
                self.error(message.format(path=path, error=error.strerror))
                self.failed = True
                continue
            try:
                found.append((path, (yield from self.lines(stream))))
            except ShellIOError as error:
                self.error(message.format(path=path, error=FsError(error.errno).strerror))
                self.failed = True
            finally:
                stream.release()
        return found

    failed = False
