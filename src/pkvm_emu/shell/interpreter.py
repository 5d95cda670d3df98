"""Runs what the parser made: one :class:`Shell` is the environment of one process of the shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.fs import FileSystem, FsError
from pkvm_emu.kernel.fs.node import O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
from pkvm_emu.shell.command import COMMANDS, CommandError, CommandInfo, Context
from pkvm_emu.shell.expand import Expander, ExpansionError
from pkvm_emu.shell.jobs import (
    RUNNABLE,
    SIGINT,
    SIGNAL_BASE,
    SIGTERM,
    BlockedForever,
    Scheduler,
    SignalStatus,
    Steps,
    Task,
    Wait,
)
from pkvm_emu.shell.parser import Parser
from pkvm_emu.shell.pattern import matches
from pkvm_emu.shell.streams import Collector, Empty, FileStream, Pipe, ShellIOError, Source, Stream
from pkvm_emu.shell.syntax import (
    AndOr,
    Case,
    Command,
    CommandList,
    For,
    Function,
    Group,
    HereDocument,
    If,
    Pipeline,
    Redirect,
    ShellSyntaxError,
    Simple,
    While,
    Word,
)

if TYPE_CHECKING:
    from pkvm_emu.elf.module_file import ModuleFile
    from pkvm_emu.system import System

_NOT_FOUND, _MISUSE = 127, 2
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


class _RedirectError(Exception):
    """A redirection that did not open; the text is the shell's message."""


class Shell:
    """One process of the shell: variables, functions, open descriptors, the last status.

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

    # Processes

    def fork(self) -> Shell:
        """A copy for a subshell; it shares the open descriptors and has to be ended by :meth:`frame`."""
        child = Shell(self.system, self.scheduler, {fd: stream.retain() for fd, stream in self.io.items()}, self.name)
        child.variables = dict(self.variables)
        child.functions = dict(self.functions)
        child.arguments = list(self.arguments)
        child.options = dict(self.options)
        child.cwd, child.status, child.pid = self.cwd, self.status, self.pid
        child.last_background = self.last_background
        child.is_background = self.is_background
        child.modules = self.modules
        child._condition_depth = self._condition_depth
        child._call_depth = self._call_depth
        return child

    def frame(self, steps: Steps[int]) -> Steps[int]:
        """Run the steps of a forked shell to their end, and close its descriptors."""
        try:
            return (yield from steps)
        except ShellExit as end:
            return end.status
        except FunctionReturn as end:
            return end.status
        except LoopControl:
            return self.status
        finally:
            for stream in self.io.values():
                stream.release()
            self.io = {}

    def script(self, text: str) -> Steps[int]:
        """Run a script line by line; a syntax error ends it with status 2 after what came before it ran."""
        try:
            yield from self.source(text)
        except ShellExit as end:
            self.status, self.exited = end.status, not isinstance(end, ShellAbort)
        except (FunctionReturn, LoopControl):
            pass
        self.report_signal()
        return self.status

    def source(self, text: str) -> Steps[int]:
        """Run text in this environment (``eval``, ``.``, a line that was typed)."""
        parser = Parser(text)
        self._enter_call()
        try:
            while True:
                try:
                    line = parser.next_line()
                except ShellSyntaxError as error:
                    self.complain(f"{self.name}: {error}")
                    raise ShellAbort(_MISUSE) from None
                if line is None:
                    return self.status
                yield from self.run_list(line)
                self.report_signal()
        finally:
            self._call_depth -= 1

    def capture(self, body: CommandList) -> Steps[str]:
        """What ``$(...)`` gives."""
        child, sink = self.fork(), Collector()
        old = child.io.get(1)
        child.io[1] = sink
        if old is not None:
            old.release()
        try:
            self._substitution_status = self.status = yield from child.frame(child.run_list(body))
        except ShellIOError as error:
            raise ExpansionError(FsError(error.errno).strerror) from None
        return sink.data.replace(b"\0", b"").decode("utf-8", "surrogateescape").rstrip("\n")

    def report_signal(self) -> None:
        """Say what ended the last foreground command, as a shell does for SIGTERM."""
        ended, self._ended_by = self._ended_by, None
        if ended is not None and ended.signal == SIGTERM:
            self.complain("Terminated")

    # Lists

    def run_list(self, node: CommandList) -> Steps[int]:
        """``a; b & c``."""
        for item in node.items:
            if item.background:
                child = self.fork()
                child.replace(0, Empty())
                child.is_background = True
                task = self.scheduler.spawn(child.frame(child._and_or(item.command)), background=True)
                self.jobs.append(task)
                self.last_background = task.number
                self.status = 0
            else:
                yield from self._and_or(item.command)
        return self.status

    def _and_or(self, node: AndOr) -> Steps[int]:
        pipelines = [("", node.first), *node.rest]
        for position, (operator, pipeline) in enumerate(pipelines):
            if (operator == "&&" and self.status) or (operator == "||" and not self.status):
                continue
            last = position == len(pipelines) - 1
            with self._as_condition(not last or pipeline.negated):
                yield from self._pipeline(pipeline)
            if last and self.status and self.options["e"] and not self._condition_depth and not pipeline.negated:
                raise ShellExit(self.status)
        return self.status

    @contextmanager
    def _as_condition(self, wanted: bool) -> Iterator[None]:
        """While its failure decides something, a command does not end the script under ``set -e``."""
        self._condition_depth += wanted
        try:
            yield
        finally:
            self._condition_depth -= wanted

    def _pipeline(self, node: Pipeline) -> Steps[int]:
        if len(node.commands) == 1:
            status = yield from self._command(node.commands[0])
        else:
            status = yield from self._piped(node.commands)
        if isinstance(status, SignalStatus):
            self._ended_by = status
        self.status = int(not status) if node.negated else status
        return self.status

    def _piped(self, commands: tuple[Command, ...]) -> Steps[int]:
        tasks = []
        previous: Stream | None = None
        for position, node in enumerate(commands):
            child = self.fork()
            if previous is not None:
                child.replace(0, previous)
            if position < len(commands) - 1:
                pipe = Pipe()
                child.replace(1, pipe.writer)
                previous = pipe.reader
            tasks.append(self.scheduler.spawn(child.frame(child._command(node)), self.is_background))
        try:
            yield Wait(lambda: all(task.done for task in tasks))
        finally:
            for task in tasks:
                self.scheduler.kill(task)
        return tasks[-1].status

    def replace(self, fd: int, stream: Stream) -> None:
        """Let a descriptor of this (forked) shell refer to ``stream``, which it takes over."""
        old = self.io.get(fd)
        self.io[fd] = stream
        if old is not None:
            old.release()

    # Commands

    def _command(self, node: Command) -> Steps[int]:
        if isinstance(node, Simple):
            return (yield from self._simple(node))
        if isinstance(node, Function):
            self.functions[node.name] = node.body
            return 0
        if not node.redirects:
            return (yield from self._compound(node))
        try:
            opened = yield from self._open_redirects(node.redirects)
        except _RedirectError as error:
            self.complain(f"{self.name}: {error}")
            return 1
        with self._descriptors(*opened):
            return (yield from self._compound(node))

    def _compound(self, node: Group | If | For | While | Case) -> Steps[int]:
        if isinstance(node, Group):
            if not node.subshell:
                return (yield from self.run_list(node.body))
            child = self.fork()
            return (yield from child.frame(child.run_list(node.body)))
        if isinstance(node, If):
            return (yield from self._if(node))
        if isinstance(node, For):
            return (yield from self._for(node))
        if isinstance(node, While):
            return (yield from self._while(node))
        return (yield from self._case(node))

    def _if(self, node: If) -> Steps[int]:
        for condition, body in node.branches:
            with self._as_condition(True):
                status = yield from self.run_list(condition)
            if not status:
                return (yield from self.run_list(body))
        if node.otherwise is not None:
            return (yield from self.run_list(node.otherwise))
        return 0

    def _for(self, node: For) -> Steps[int]:
        values = list(self.arguments)
        if node.words is not None:
            values = yield from self._expand(node.words)
        status = 0
        for value in values:
            self.variables[node.name] = value
            try:
                status = yield from self.run_list(node.body)
            except LoopControl as control:
                if self._leaves(control):
                    return 0
                status = 0
        return status

    def _while(self, node: While) -> Steps[int]:
        status = 0
        while True:
            try:
                with self._as_condition(True):
                    failed = bool((yield from self.run_list(node.condition)))
                if failed != node.until:
                    return status
                status = yield from self.run_list(node.body)
            except LoopControl as control:
                if self._leaves(control):
                    return 0
                status = 0

    @staticmethod
    def _leaves(control: LoopControl) -> bool:
        """Whether the loop ends; raises on for the loops around it."""
        if control.levels > 1:
            control.levels -= 1
            raise control
        return control.kind == "break"

    def _case(self, node: Case) -> Steps[int]:
        subject = yield from self._expand_text(node.subject)
        for patterns, body in node.arms:
            for pattern in patterns:
                try:
                    pieces = yield from self._expander.pattern(pattern)
                except ExpansionError as error:
                    raise self._expansion_failed(error) from None
                if matches(pieces, subject):
                    return (yield from self.run_list(body)) if body.items else 0
        return 0

    # Simple commands

    def _simple(self, node: Simple) -> Steps[int]:
        self.report_signal()
        output = self.io.get(1)
        yield Wait(output.has_room) if output is not None else RUNNABLE
        self._substitution_status = 0
        words = yield from self._expand(node.words)
        values: list[tuple[str, str]] = []
        for name, word in node.assignments:
            text = yield from self._expand_text(word)
            values.append((name, text))
            if not words:
                self.variables[name] = text
        if self.options["x"]:
            self.complain("+ " + " ".join([*(f"{name}={value}" for name, value in values), *words]))
        try:
            opened, new = yield from self._open_redirects(node.redirects)
        except _RedirectError as error:
            self.complain(f"{self.name}: {error}")
            return 1
        if not words:
            for stream in opened:
                stream.release()
            return self._substitution_status
        if words == ["exec"]:
            self._keep(opened, new)
            return 0
        with self._descriptors(opened, new), self._temporary(values):
            return (yield from self.run_words(words))

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

    def run_words(self, words: list[str]) -> Steps[int]:
        """Run a function or a command by its name and arguments."""
        name = words[0]
        if name in self.functions:
            return (yield from self._call_function(self.functions[name], words[1:]))
        info = COMMANDS.get(
            name.rpartition("/")[2] if name.startswith(("/bin/", "/sbin/", "/usr/", "/system/")) else name
        )
        if info is None:
            what = "No such file or directory" if "/" in name else "not found"
            self.complain(f"{self.name}: {name}: {what}")
            return _NOT_FOUND
        return (yield from self._run_command(info, words))

    def _run_command(self, info: CommandInfo, words: list[str]) -> Steps[int]:
        context = Context(self, words[0], words[1:])
        try:
            result = info.function(context)
            return result if isinstance(result, int) else (yield from result)
        except CommandError as error:
            context.error(str(error))
            return error.status
        except FsError as error:
            return context.error(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        except ShellIOError as error:
            who = self.name if info.is_builtin else words[0]
            self.complain(f"{who}: write error: {FsError(error.errno).strerror}")
            return 1
        except BlockedForever:
            context.error("interrupted: nothing that it waits for can come any more")
            return SignalStatus(SIGNAL_BASE + SIGINT)
        except UsageError as error:
            return context.error(str(error))

    def _call_function(self, body: Command, arguments: list[str]) -> Steps[int]:
        self._enter_call()
        saved, self.arguments = self.arguments, arguments
        try:
            return (yield from self._command(body))
        except FunctionReturn as end:
            return end.status
        finally:
            self._call_depth -= 1
            self.arguments = saved

    def _enter_call(self) -> None:
        if self._call_depth >= _MAX_CALL_DEPTH:
            self.complain(f"{self.name}: functions and scripts call each other too deeply")
            raise ShellAbort(_MISUSE)
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
        return ShellAbort(_MISUSE)

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
                raise _RedirectError(f"{text}: Bad file descriptor")
            return
        both = operator in ("&>", ">&")
        flags = _OPEN_FLAGS.get(operator, O_WRONLY | O_CREAT | O_TRUNC)
        try:
            stream = FileStream(self.fs.open(self.absolute(text), flags))
        except FsError as error:
            verb = "create" if flags & O_CREAT else "open"
            raise _RedirectError(f"can't {verb} {text}: {error.strerror}") from None
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
