"""Runs what the parser made: one :class:`Shell` is one process of the shell."""

from __future__ import annotations

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.fs import FsError
from pkvm_emu.shell.command import COMMANDS, CommandError, CommandInfo, Context
from pkvm_emu.shell.environment import (
    MISUSE,
    Environment,
    FunctionReturn,
    LoopControl,
    RedirectError,
    ShellAbort,
    ShellExit,
)
from pkvm_emu.shell.expand import ExpansionError
from pkvm_emu.shell.jobs import RUNNABLE, SIGINT, SIGNAL_BASE, SIGTERM, BlockedForever, SignalStatus, Steps, Wait
from pkvm_emu.shell.parser import Parser
from pkvm_emu.shell.pattern import matches
from pkvm_emu.shell.streams import Collector, Empty, Pipe, ShellIOError, Stream
from pkvm_emu.shell.syntax import (
    AndOr,
    Case,
    Command,
    CommandList,
    For,
    Function,
    Group,
    If,
    Pipeline,
    ShellSyntaxError,
    Simple,
    While,
)

_NOT_FOUND = 127


class Shell(Environment):
    """One process of the shell; arguments as of :class:`Environment`."""

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
                    raise ShellAbort(MISUSE) from None
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
                task.job = 1 + max((job.job for job in self.jobs if not job.done), default=0)
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
        except RedirectError as error:
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
        except RedirectError as error:
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
