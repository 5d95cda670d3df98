"""Commands that belong to the language: ``exit``, ``set``, ``read``, ``shift``, ``wait``, ..."""

from __future__ import annotations

import re

from pkvm_emu.shell.command import COMMANDS, CommandError, Context, command
from pkvm_emu.shell.environment import FunctionReturn, LoopControl, ShellExit
from pkvm_emu.shell.jobs import SIGTERM, SignalStatus, Steps, Task, Wait

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MAX_LINE = 1 << 16
_NO_SUCH_JOB = 127
_LONG_OPTIONS = {"errexit": "e", "nounset": "u", "xtrace": "x", "noglob": "f"}


def _number(context: Context, default: int) -> int:
    if not context.arguments:
        return default
    try:
        return int(context.arguments[0])
    except ValueError:
        raise CommandError(f"Illegal number: {context.arguments[0]}", 2) from None


@command(":", "", "do nothing", builtin=True)
@command("true", "", "succeed", builtin=True)
def succeed(context: Context) -> int:
    """Status 0."""
    return 0


@command("false", "", "fail", builtin=True)
def fail(context: Context) -> int:
    """Status 1."""
    return 1


@command("exit", "[STATUS]", "end the shell", builtin=True)
def leave(context: Context) -> int:
    """End this process of the shell."""
    raise ShellExit(_number(context, int(context.shell.status)) & 0xFF)


@command("return", "[STATUS]", "end a function", builtin=True)
def give_back(context: Context) -> int:
    """End the function or the sourced script."""
    raise FunctionReturn(_number(context, int(context.shell.status)) & 0xFF)


@command("break", "[N]", "leave loops", builtin=True)
@command("continue", "[N]", "next round of a loop", builtin=True)
def loop_control(context: Context) -> int:
    """Leave or continue the Nth loop around."""
    raise LoopControl(context.name, max(_number(context, 1), 1))


@command("set", "[-eufx] [-- ARG...]", "options and positional parameters", builtin=True)
def set_options(context: Context) -> int:
    """Options of the shell; what follows ``--`` becomes ``$1``, ``$2``, ..."""
    shell, words = context.shell, list(context.arguments)
    if not words:
        context.out("".join(f"{name}='{value}'\n" for name, value in sorted(shell.variables.items())))
        return 0
    while words and len(words[0]) > 1 and words[0][0] in "-+":
        word = words.pop(0)
        if word == "--":
            shell.arguments = words
            return 0
        letters = word[1:]
        if letters == "o":
            name = words.pop(0) if words else ""
            letters = _LONG_OPTIONS.get(name, "")
            if not letters:
                raise CommandError(f"illegal option -o {name}", 2)
        for letter in letters:
            if letter not in shell.options:
                raise CommandError(f"illegal option {word[0]}{letter}", 2)
            shell.options[letter] = word[0] == "-"
    if words:
        shell.arguments = words
    return 0


@command("unset", "NAME...", "forget variables", builtin=True)
def unset(context: Context) -> int:
    """Forget variables, with ``-f`` functions."""
    found, names = context.options("fv")
    for name in names:
        (context.shell.functions if "f" in found else context.shell.variables).pop(name, None)
    return 0


@command("local", "NAME[=VALUE]...", "set variables", builtin=True)
@command("readonly", "NAME[=VALUE]...", "set variables", builtin=True)
@command("export", "NAME[=VALUE]...", "set variables", builtin=True)
def export(context: Context) -> int:
    """Set variables; all of them are seen by every command anyway."""
    for word in context.arguments:
        name, equals, value = word.partition("=")
        if not _NAME.match(name):
            raise CommandError(f"{word}: bad variable name", 2)
        if equals:
            context.shell.variables[name] = value
    return 0


@command("shift", "[N]", "drop positional parameters", builtin=True)
def shift(context: Context) -> int:
    """Drop the first N of ``$1``, ``$2``, ..."""
    count = _number(context, 1)
    if not 0 <= count <= len(context.shell.arguments):
        return 1
    context.shell.arguments = context.shell.arguments[count:]
    return 0


@command("eval", "WORD...", "run words as a line", builtin=True)
def evaluate(context: Context) -> Steps[int]:
    """Run the arguments as shell text."""
    context.shell.status = 0
    return (yield from context.shell.source(" ".join(context.arguments)))


@command("source", "FILE", "run a script in this shell", builtin=True)
@command(".", "FILE", "run a script in this shell", builtin=True)
def source(context: Context) -> Steps[int]:
    """Run a file of the system in this shell."""
    if not context.arguments:
        raise CommandError("filename argument required", 2)
    text = context.shell.fs.read(context.path(context.arguments[0]))
    try:
        return (yield from context.shell.source(text))
    except FunctionReturn as end:
        return end.status


@command("sh", "[-c TEXT | FILE] [ARG...]", "run a script in a shell of its own")
def shell_process(context: Context) -> Steps[int]:
    """Run text or a file in a copy of this shell."""
    found, words = context.options("eux", "c")
    if "c" in found:
        text, arguments = found["c"], words[1:]
    elif words:
        text, arguments = context.shell.fs.read(context.path(words[0])), words[1:]
    else:
        stream = context.open("-")
        try:
            text = b"\n".join((yield from context.lines(stream))).decode("utf-8", "surrogateescape")
        finally:
            stream.release()
        arguments = []
    child = context.shell.fork()
    child.functions.clear()
    child.arguments = arguments
    child.options = {letter: letter in found for letter in child.options}
    return (yield from child.frame(child.script(text)))


@command("command", "NAME [ARG...]", "run a command, not a function; -v: does it exist", builtin=True)
def run_command(context: Context) -> Steps[int]:
    """``command NAME``; ``command -v NAME`` prints the name when there is one."""
    found, words = context.options("vp")
    if not words:
        return 0
    if "v" in found:
        known = words[0] in COMMANDS or words[0] in context.shell.functions
        context.out(f"{words[0]}\n" if known else "")
        return 0 if known else 127
    saved, context.shell.functions = context.shell.functions, {}
    try:
        return (yield from context.shell.run_words(words))
    finally:
        context.shell.functions = saved


@command("exec", "[COMMAND [ARG...]]", "run a command in place of the shell", builtin=True)
def replace_shell(context: Context) -> Steps[int]:
    """Run a command and end the shell with its status."""
    if not context.arguments:
        return 0
    status = yield from context.shell.run_words(context.arguments)
    raise ShellExit(status)


@command("read", "[-r] [NAME...]", "read a line into variables", builtin=True)
def read(context: Context) -> Steps[int]:
    """Read one line of standard input; the last variable gets the rest."""
    found, names = context.options("r", "p")
    stream, line, complete = context.shell.io.get(0), bytearray(), False
    while stream is not None and not complete:
        # Byte by byte: what follows the line belongs to the next reader.
        byte = stream.read(1)
        while isinstance(byte, int):
            fresh: list[bytes | int] = []
            source = stream
            yield Wait(lambda fresh=fresh, source=source: _poll(fresh, source.read(1)), on_file=True)  # type: ignore[misc]  # mypy: lambda default
            byte = fresh[-1]
        if not byte:
            break
        if byte == b"\\" and "r" not in found:
            byte = stream.read(1)
            line += byte if isinstance(byte, bytes) and byte != b"\n" else b""
            continue
        complete = byte == b"\n"
        line += b"" if complete else byte
        if len(line) > _MAX_LINE:
            raise CommandError("line too long")
    text = line.decode("utf-8", "surrogateescape")
    separators = context.shell.variables.get("IFS", " \t\n")
    names = names or ["REPLY"]
    for position, name in enumerate(names):
        text = text.lstrip("".join(c for c in separators if c in " \t\n"))
        if position == len(names) - 1:
            context.shell.variables[name] = text.rstrip("".join(c for c in separators if c in " \t\n"))
            break
        split = re.split(f"[{re.escape(separators)}]", text, maxsplit=1) if separators else [text]
        context.shell.variables[name], text = split[0], split[1] if len(split) > 1 else ""
    return 0 if complete else 1


def _poll(fresh: list[bytes | int], value: bytes | int) -> bool:
    fresh.append(value)
    return isinstance(value, bytes)


@command("wait", "[PID...]", "wait for background jobs", builtin=True)
def wait(context: Context) -> Steps[int]:
    """Wait for all background jobs, or for those given, by process (``$!``) or by job (``%1``)."""
    jobs = context.shell.jobs
    if context.arguments:
        found = [_job(context, word) for word in context.arguments]
        jobs = [task for task in found if task is not None]
    yield Wait(lambda: all(task.done for task in jobs))
    if not context.arguments:
        return 0
    return _NO_SUCH_JOB if found[-1] is None else int(found[-1].status)


def _job(context: Context, word: str) -> Task | None:
    """The background job of this shell that a word names: ``%1``, ``%%`` and ``%+`` (the newest), ``%-``, or a process number."""
    jobs = context.shell.jobs
    if word in ("%", "%%", "%+", "%-"):
        place = 2 if word == "%-" else 1
        return jobs[-place] if len(jobs) >= place else None
    number = word.removeprefix("%")
    if not number.isdigit():
        raise CommandError(f"{word}: no such job", 2)
    by_job = word != number
    return next((task for task in reversed(jobs) if (task.job if by_job else task.number) == int(number)), None)


@command("jobs", "", "list background jobs", builtin=True)
def show_jobs(context: Context) -> int:
    """The background jobs of this shell: job and process number, and what became of them."""
    shell = context.shell
    for task in shell.jobs:
        if not task.done:
            state = "Running"
        elif isinstance(task.status, SignalStatus):
            state = "Terminated"
        else:
            state = f"Done({task.status})" if task.status else "Done"
        context.out(f"[{task.job}]{'+' if task is shell.jobs[-1] else ' '} {task.number} {state}\n")
    shell.jobs[:] = [task for task in shell.jobs if not task.done]
    return 0


@command("kill", "[-SIGNAL] PID...", "end background jobs", builtin=True)
def kill(context: Context) -> int:
    """End background jobs."""
    status = 0
    for word in context.arguments:
        if word.startswith("-"):
            continue
        task: Task | None
        if word.startswith("%"):
            task = _job(context, word)
        else:
            number = int(word) if word.isdigit() else -1
            task = next((task for task in context.shell.scheduler.tasks if task.number == number), None)
        if task is None or task.done:
            status = context.error(f"can't kill pid {word}: No such process")
        else:
            context.shell.scheduler.kill(task)
    return status


@command("sleep", "SECONDS", "let emulated time pass")
def sleep(context: Context) -> Steps[int]:
    """Let time pass: other jobs run, and the system's clock moves on. No host time is spent."""
    clock = context.shell.scheduler.clock
    yield Wait(lambda: False, until=clock.now() + _duration(context.arguments[0] if context.arguments else ""))
    return 0


@command("timeout", "SECONDS COMMAND [ARG...]", "run a command, end it after a time")
def timeout(context: Context) -> Steps[int]:
    """Run a command; after the time it gets SIGTERM (status 143)."""
    found, words = context.options("", "sk")
    del found
    if len(words) < 2:
        raise CommandError("usage: timeout SECONDS COMMAND [ARG...]", 125)
    scheduler = context.shell.scheduler
    end = scheduler.clock.now() + _duration(words[0])
    child = context.shell.fork()
    task = scheduler.spawn(child.frame(child.run_words(words[1:])), child.is_background)
    try:
        yield Wait(lambda: task.done, until=end)
    finally:
        scheduler.kill(task, SIGTERM)
    return task.status if isinstance(task.status, SignalStatus) else int(task.status)


def _duration(text: str) -> int:
    """Nanoseconds of ``1``, ``0.3``, ``2s``, ``1m``, ``10ms`` is none."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)", text)
    if match is None:
        raise CommandError(f"invalid number '{text}'")
    whole, _, fraction = match[1].partition(".")
    nanoseconds = int(whole or "0") * 1_000_000_000 + int((fraction + "0" * 9)[:9])
    return nanoseconds * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
