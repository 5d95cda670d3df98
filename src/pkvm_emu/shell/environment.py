"""The environment of one process of the shell: variables, descriptors, redirections, and how words are expanded in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pkvm_emu.kernel.fs import FileSystem, FsError
from pkvm_emu.kernel.fs.node import O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
from pkvm_emu.shell.expand import Expander, ExpansionError
from pkvm_emu.shell.jobs import Scheduler, SignalStatus, Steps, Task
from pkvm_emu.shell.streams import FileStream, ShellIOError, Source, Stream
from pkvm_emu.shell.syntax import Command, CommandList, HereDocument, Redirect, Word

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.system import System

MISUSE = 2
_MAX_CALL_DEPTH = 25
_OPEN_FLAGS = {
    "<": O_RDONLY,
    "<>": O_RDWR | O_CREAT,
    ">": O_WRONLY | O_CREAT | O_TRUNC,
    ">|": O_WRONLY | O_CREAT | O_TRUNC,
    "&>": O_WRONLY | O_CREAT | O_TRUNC,
    ">>": O_WRONLY | O_CREAT | O_APPEND,
}


class ShellExit(Exception):
    """Ends the process: ``exit``, ``set -e``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ShellAbort(ShellExit):
    """The same for an error: a syntax error, an expansion that fails. A shell at a terminal goes on."""


class LoopControl(Exception):
    """``break`` and ``continue``: ``levels`` loops out."""

    def __init__(self, kind: str, levels: int) -> None:
        super().__init__(kind, levels)
        self.kind = kind
        self.levels = levels


class FunctionReturn(Exception):
    """``return``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class RedirectError(Exception):
    """A redirection that did not open; the text is the shell's message."""


class Environment:
    """Variables, functions, open descriptors, options and the last status of one process.

    Args:
        system: what files and commands work on.
        scheduler: who runs its tasks.
        io: descriptors; the shell does not close them.
        name: ``$0``, and what begins its messages.
    """

    def __init__(self, system: System, scheduler: Scheduler, io: dict[int, Stream], name: str = "sh") -> None:
        self.system = system
        self.scheduler = scheduler
        self.io = io
        self.name = name
        self.variables: dict[str, str] = {}
        self.functions: dict[str, Command] = {}
        self.arguments: list[str] = []
        self.options = {"e": False, "u": False, "x": False, "f": False}
        self.cwd = "/"
        self.status = 0
        self.last_background: int | None = None
        #: Background jobs that this process started.
        self.jobs: list[Task] = []
        self.is_background = False
        #: Module files by module name, for ``modprobe``.
        self.modules: dict[str, ModuleFile] = {}
        self.exited = False
        self.pid = 1
        self._expander = Expander(self)
        self._condition_depth = 0
        self._call_depth = 0
        self._substitution_status = 0
        self._ended_by: SignalStatus | None = None

    # Facts

    @property
    def fs(self) -> FileSystem:
        """The system's files."""
        return self.system.fs

    def absolute(self, path: str) -> str:
        """A path as seen from the working directory."""
        return path if path.startswith("/") or not path else f"{self.cwd.rstrip('/')}/{path}"

    def parameter(self, name: str) -> str | None:
        """The value of ``$name``; None when it is not set."""
        if name.isdigit():
            number = int(name) if len(name) < 5 else len(self.arguments) + 1
            if number == 0:
                return self.name
            return self.arguments[number - 1] if number <= len(self.arguments) else None
        special = {
            "?": str(int(self.status)),
            "#": str(len(self.arguments)),
            "$": str(self.pid),
            "!": None if self.last_background is None else str(self.last_background),
            "-": "".join(letter for letter, on in self.options.items() if on),
            "@": " ".join(self.arguments),
            "*": " ".join(self.arguments),
        }
        return special[name] if name in special else self.variables.get(name)

    def complain(self, message: str) -> None:
        """One line on standard error."""
        stream = self.io.get(2)
        if stream is not None:
            try:
                stream.write(message.encode("utf-8", "surrogateescape") + b"\n")
            except ShellIOError:
                return

    def capture(self, body: CommandList) -> Steps[str]:
        """What ``$(...)`` gives."""
        raise NotImplementedError

    def replace(self, fd: int, stream: Stream) -> None:
        """Let a descriptor of this (forked) shell refer to ``stream``, which it takes over."""
        old = self.io.get(fd)
        self.io[fd] = stream
        if old is not None:
            old.release()

    @contextmanager
    def _as_condition(self, wanted: bool) -> Iterator[None]:
        """While its failure decides something, a command does not end the script under ``set -e``."""
        self._condition_depth += wanted
        try:
            yield
        finally:
            self._condition_depth -= wanted

    @contextmanager
    def _temporary(self, values: list[tuple[str, str]]) -> Iterator[None]:
        old = {name: self.variables.get(name) for name, _ in values}
        self.variables.update(values)
        try:
            yield
        finally:
            for name, value in old.items():
                if value is None:
                    self.variables.pop(name, None)
                else:
                    self.variables[name] = value

    def _enter_call(self) -> None:
        if self._call_depth >= _MAX_CALL_DEPTH:
            self.complain(f"{self.name}: functions and scripts call each other too deeply")
            raise ShellAbort(MISUSE)
        self._call_depth += 1

    # Expansion

    def _expand(self, words: tuple[Word, ...]) -> Steps[list[str]]:
        try:
            return (yield from self._expander.words(words))
        except ExpansionError as error:
            raise self._expansion_failed(error) from None

    def _expand_text(self, word: Word) -> Steps[str]:
        try:
            return (yield from self._expander.text(word))
        except ExpansionError as error:
            raise self._expansion_failed(error) from None

    def _expansion_failed(self, error: ExpansionError) -> ShellExit:
        self.complain(f"{self.name}: {error}")
        return ShellAbort(MISUSE)

    # Redirections

    def _open_redirects(self, redirects: tuple[Redirect, ...]) -> Steps[tuple[list[Stream], dict[int, Stream]]]:
        """(streams opened here, the new descriptors)."""
        opened: list[Stream] = []
        new = dict(self.io)
        try:
            for redirect in redirects:
                yield from self._redirect(redirect, opened, new)
        except BaseException:
            for stream in opened:
                stream.release()
            raise
        return opened, new

    def _redirect(self, redirect: Redirect, opened: list[Stream], new: dict[int, Stream]) -> Steps[None]:
        target, operator = redirect.target, redirect.operator
        if isinstance(target, HereDocument):
            text = yield from self._expand_text(target.body)
            stream: Stream = Source(text.encode("utf-8", "surrogateescape"))
            opened.append(stream)
            new[redirect.fd] = stream
            return
        text = yield from self._expand_text(target)
        if operator in (">&", "<&") and (text == "-" or text.isdigit()):
            if text == "-":
                new.pop(redirect.fd, None)
            elif int(text) in new:
                new[redirect.fd] = new[int(text)]
            else:
                raise RedirectError(f"{text}: Bad file descriptor")
            return
        both = operator in ("&>", ">&")
        flags = _OPEN_FLAGS.get(operator, O_WRONLY | O_CREAT | O_TRUNC)
        try:
            stream = FileStream(self.fs.open(self.absolute(text), flags))
        except FsError as error:
            verb = "create" if flags & O_CREAT else "open"
            raise RedirectError(f"can't {verb} {text}: {error.strerror}") from None
        opened.append(stream)
        new[redirect.fd] = stream
        if both:
            new[2] = stream

    @contextmanager
    def _descriptors(self, opened: list[Stream], new: dict[int, Stream]) -> Iterator[None]:
        """Run with other descriptors, then close what was opened for it."""
        saved, self.io = self.io, new
        try:
            yield
        finally:
            self.io = saved
            for stream in opened:
                stream.release()

    def _keep(self, opened: list[Stream], new: dict[int, Stream]) -> None:
        """``exec`` without a command: the redirections stay."""
        for stream in new.values():
            stream.retain()
        for stream in self.io.values():
            stream.release()
        for stream in opened:
            stream.release()
        self.io = new
