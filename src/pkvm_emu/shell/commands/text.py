"""Commands that print and filter text."""

from __future__ import annotations

import re

from pkvm_emu.kernel.fs import FsError
from pkvm_emu.shell.command import CommandError, Context, command
from pkvm_emu.shell.jobs import Steps
from pkvm_emu.shell.streams import ShellIOError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", "e": "\x1b"}
_ESCAPE = re.compile(r"\\(?:0?([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_CANNOT_OPEN = "can't open '{path}': {error}"


def unescape(text: str) -> str:
    r"""Replace ``\n``, ``\t``, ``\0101``, ``\x41``, ...; a byte above 0x7f stays that one byte."""

    def replace(match: re.Match[str]) -> str:
        if match[3] is not None:
            return _ESCAPES.get(match[3], match[0])
        value = (int(match[1], 8) if match[1] else int(match[2], 16)) & 0xFF
        return bytes([value]).decode("utf-8", "surrogateescape")

    return _ESCAPE.sub(replace, text)


@command("echo", "[-ne] [TEXT...]", "print text", builtin=True)
def echo(context: Context) -> int:
    """Print the arguments and a newline, by one write."""
    words, newline, escapes = list(context.arguments), True, False
    while words and re.fullmatch(r"-[neE]+", words[0]):
        option = words.pop(0)
        newline = newline and "n" not in option
        escapes = "e" in option or (escapes and "E" not in option)
    text = " ".join(words)
    context.out((unescape(text) if escapes else text) + ("\n" if newline else ""))
    return 0


_CONVERSION = re.compile(r"%([-+ 0#]*)(\*|\d*)(?:\.(\*|\d*))?([a-zA-Z%])")


@command("printf", "FORMAT [ARG...]", "print formatted text", builtin=True)
def printf(context: Context) -> int:
    """Print by a format; it is used again while arguments are left."""
    if not context.arguments:
        raise CommandError("usage: printf FORMAT [ARG...]", 2)
    form, arguments = context.arguments[0], context.arguments[1:]
    out, status = [], 0
    while True:
        before = len(arguments)
        text, failed = _format(context, form, arguments)
        out.append(text)
        status |= failed
        if not arguments or len(arguments) == before:
            break
    context.out("".join(out))
    return status


def _format(context: Context, form: str, arguments: list[str]) -> tuple[str, int]:
    out, position, status = [], 0, 0
    for match in _CONVERSION.finditer(form):
        out.append(unescape(form[position : match.start()]))
        position = match.end()
        flags, width, precision, kind = match.groups()
        if kind == "%":
            out.append("%")
            continue
        if width == "*":
            width = str(_number(context, arguments.pop(0))[0]) if arguments else "0"
        if precision == "*":
            precision = str(max(_number(context, arguments.pop(0))[0], 0)) if arguments else "0"
        argument = arguments.pop(0) if arguments else ""
        if abs(int(width or 0)) > 4096 or int(precision or 0) > 4096:
            raise CommandError(f"{match[0]}: too wide")
        spec = f"%{flags}{width}{'' if precision is None else '.' + precision}"
        if kind == "s":
            out.append(f"{spec}s" % argument)
        elif kind == "b":
            out.append(f"{spec}s" % unescape(argument))
        elif kind == "c":
            out.append(f"{spec}s" % argument[:1])
        elif kind in "diuoxX":
            value, failed = _number(context, argument)
            status |= failed
            if kind in "uoxX":
                value &= (1 << 64) - 1
            out.append(f"{spec}{'d' if kind in 'diu' else kind}" % value)
        else:
            raise CommandError(f"{match[0]}: invalid format")
    out.append(unescape(form[position:]))
    return "".join(out), status


def _number(context: Context, text: str) -> tuple[int, int]:
    if text[:1] in ("'", '"'):
        return ord(text[1:2] or "\0"), 0
    try:
        return int(text or "0", 8 if re.fullmatch(r"[-+]?0[0-7]+", text) else 0), 0
    except ValueError:
        context.error(f"invalid number '{text}'")
        return 0, 1


@command("cat", "[FILE...]", "print files")
def cat(context: Context) -> Steps[int]:
    """Print files as they come; waits on those that block."""
    _, paths = context.options("uenv")
    status = 0
    for path in paths or ["-"]:
        try:
            stream = context.open(path)
        except FsError as error:
            status = context.error(_CANNOT_OPEN.format(path=path, error=error.strerror))
            continue
        try:
            while True:
                try:
                    chunk = yield from context.read(stream)
                except ShellIOError as error:
                    status = context.error(f"read error: {FsError(error.errno).strerror}")
                    break
                if not chunk:
                    break
                context.out(chunk)
                yield from context.room()
        finally:
            stream.release()
    return status


def _line_count(context: Context) -> tuple[str, list[str]]:
    """The count of ``head`` and ``tail``: ``-n 5``, ``-5``; and the operands."""
    arguments = context.arguments
    if arguments and re.fullmatch(r"-\d+", arguments[0]):
        context.arguments = ["-n", arguments[0][1:], *arguments[1:]]
    found, paths = context.options("qvf", "n")
    count = found.get("n", "10")
    if not re.fullmatch(r"[-+]?\d+", count):
        raise CommandError(f"invalid number '{count}'")
    return count, paths


@command("head", "[-n N] [FILE...]", "print the first lines")
def head(context: Context) -> Steps[int]:
    """Print the first lines, and stop reading behind them."""
    count, paths = _line_count(context)
    wanted, status = int(count), 0
    for path in paths or ["-"]:
        if len(paths) > 1:
            context.out(f"{'' if path == paths[0] else chr(10)}==> {path} <==\n")
        try:
            stream = context.open(path)
        except FsError as error:
            status = context.error(f"{path}: {error.strerror}")
            continue
        try:
            if wanted < 0:
                lines = yield from context.lines(stream)
                context.out(b"".join(line + b"\n" for line in lines[:wanted]))
                continue
            left = wanted
            while left and (chunk := (yield from context.read(stream))):
                pieces = re.findall(rb"[^\n]*\n|[^\n]+", chunk)
                part = pieces[:left]
                context.out(b"".join(part))
                yield from context.room()
                left -= sum(piece.endswith(b"\n") for piece in part)
        except ShellIOError as error:
            status = context.error(f"{path}: {FsError(error.errno).strerror}")
        finally:
            stream.release()
    return status


@command("tail", "[-n N] [FILE...]", "print the last lines")
def tail(context: Context) -> Steps[int]:
    """Print the last lines; ``-n +N`` from line N on."""
    count, paths = _line_count(context)
    for path, lines in (yield from context.each_input(paths, _CANNOT_OPEN)):
        if len(paths) > 1:
            context.out(f"==> {path} <==\n")
        number = abs(int(count))
        chosen = lines[max(number, 1) - 1 :] if count.startswith("+") else lines[max(len(lines) - number, 0) :]
        context.out(b"".join(line + b"\n" for line in chosen))
    return int(context.failed)


@command("wc", "[-lwc] [FILE...]", "count lines, words, bytes")
def wc(context: Context) -> Steps[int]:
    """Count; one number alone without a name for standard input."""
    found, paths = context.options("lwc")
    chosen = [letter for letter in "lwc" if letter in found] or ["l", "w", "c"]
    totals = dict.fromkeys("lwc", 0)
    rows: list[tuple[dict[str, int], str]] = []
    status = 0
    for path in paths or ["-"]:
        try:
            stream = context.open(path)
        except FsError as error:
            status = context.error(f"{path}: {error.strerror}")
            continue
        try:
            data = yield from context.whole(stream)
        finally:
            stream.release()
        counts = {"l": data.count(b"\n"), "w": len(data.split()), "c": len(data)}
        rows.append((counts, path if paths else ""))
        for letter in totals:
            totals[letter] += counts[letter]
    if len(paths) > 1:
        rows.append((totals, "total"))
    form = "{}" if len(chosen) == 1 else "{:9}"
    for counts, name in rows:
        numbers = " ".join(form.format(counts[letter]) for letter in chosen)
        context.out(f"{numbers}{' ' + name if name else ''}\n")
    return status


@command("grep", "[-invcqwxoEFlhs] [-A N] [-B N] [-C N] [-m N] PATTERN [FILE...]", "print matching lines")
def grep(context: Context) -> Steps[int]:
    """Print the lines that match; 0 when any did, 1 when none, 2 after an error."""
    found, words = context.options("invcqwxEFlhHosar", "ABCem")
    if "e" in found:
        words.insert(0, found["e"])
    if not words:
        raise CommandError("usage: grep [OPTIONS] PATTERN [FILE...]", 2)
    try:
        expression = _expression(words[0], found)
        after, before = (int(found.get(key, found.get("C", "0"))) for key in "AB")
        limit = int(found.get("m", "-1"))
    except (re.error, ValueError) as error:
        raise CommandError(f"bad pattern or number: {error}", 2) from None
    paths = words[1:]
    message = "{path}: {error}" if "s" not in found else ""
    inputs = yield from context.each_input(paths, message)
    matched = False
    for path, lines in inputs:
        prefix = f"{path}" if (len(paths) > 1 or "H" in found) and "h" not in found else ""
        hits = [n for n, line in enumerate(lines) if bool(expression.search(line)) != ("v" in found)]
        hits = hits[:limit] if limit >= 0 else hits
        matched = matched or bool(hits)
        if "q" in found:
            continue
        if "l" in found:
            context.out(f"{path}\n" if hits else "")
        elif "c" in found:
            context.out(f"{prefix}{':' if prefix else ''}{len(hits)}\n")
        else:
            _print_matches(
                context, lines, hits, prefix, "n" in found, expression if "o" in found else None, before, after
            )
    if context.failed and not (matched and "q" in found):
        return 2
    return 0 if matched else 1


def _expression(pattern: str, found: dict[str, str]) -> re.Pattern[bytes]:
    if "F" in found:
        text = re.escape(pattern)
    elif "E" in found:
        text = _posix_classes(pattern)
    else:
        # In basic expressions + ? | ( ) { } are plain and their escaped forms are the operators.
        text = re.sub(r"\\([+?|(){}])|([+?|(){}])", lambda m: m[1] or "\\" + m[2], _posix_classes(pattern))
    if "w" in found:
        text = rf"\b(?:{text})\b"
    if "x" in found:
        text = rf"^(?:{text})$"
    return re.compile(text.encode("utf-8", "surrogateescape"), re.IGNORECASE if "i" in found else 0)


def _posix_classes(text: str) -> str:
    for name, inside in (
        ("alpha", "A-Za-z"), ("digit", "0-9"), ("alnum", "A-Za-z0-9"), ("space", r"\s"), ("xdigit", "0-9A-Fa-f"),
        ("upper", "A-Z"), ("lower", "a-z"), ("blank", " \t"),
    ):  # fmt: skip
        text = text.replace(f"[:{name}:]", inside)
    return text


def _print_matches(
    context: Context,
    lines: list[bytes],
    hits: list[int],
    prefix: str,
    numbered: bool,
    only: re.Pattern[bytes] | None,
    before: int,
    after: int,
) -> None:
    shown: dict[int, bool] = {}
    for hit in hits:
        for number in range(max(hit - before, 0), min(hit + after + 1, len(lines))):
            shown[number] = shown.get(number, False) or number == hit
    previous = None
    for number in sorted(shown):
        if previous is not None and number > previous + 1 and (before or after):
            context.out("--\n")
        previous = number
        mark = ":" if shown[number] else "-"
        head = (f"{prefix}{mark}" if prefix else "") + (f"{number + 1}{mark}" if numbered else "")
        texts = [match[0] for match in only.finditer(lines[number])] if only is not None else [lines[number]]
        for text in texts:
            context.out(head.encode("utf-8", "surrogateescape") + text + b"\n")


@command("sort", "[-nru] [FILE...]", "sort lines")
def sort(context: Context) -> Steps[int]:
    """Sort lines by their bytes, with ``-n`` by the number they begin with."""
    found, paths = context.options("nru")
    inputs = yield from context.each_input(paths)
    lines = [line for _, part in inputs for line in part]

    def leading_number(line: bytes) -> int:
        match = re.match(rb"\s*(-?\d+)", line)
        return int(match[1]) if match else 0

    lines.sort(key=lambda line: (leading_number(line) if "n" in found else 0, line), reverse="r" in found)
    if "u" in found:
        lines = list(dict.fromkeys(lines))
    context.out(b"".join(line + b"\n" for line in lines))
    return int(context.failed)


@command("uniq", "[-c] [FILE]", "join equal neighbours")
def uniq(context: Context) -> Steps[int]:
    """Print each run of equal lines once, with ``-c`` its length."""
    found, paths = context.options("c")
    inputs = yield from context.each_input(paths)
    runs: list[tuple[bytes, int]] = []
    for line in (line for _, part in inputs for line in part):
        if runs and runs[-1][0] == line:
            runs[-1] = (line, runs[-1][1] + 1)
        else:
            runs.append((line, 1))
    for line, count in runs:
        context.out((f"{count:7} ".encode() if "c" in found else b"") + line + b"\n")
    return int(context.failed)


@command("tee", "[-a] FILE...", "copy input to files and on")
def tee(context: Context) -> Steps[int]:
    """Copy standard input to standard output and to files."""
    from pkvm_emu.kernel.fs.node import O_APPEND, O_CREAT, O_TRUNC, O_WRONLY
    from pkvm_emu.shell.streams import FileStream

    found, paths = context.options("a")
    flags = O_WRONLY | O_CREAT | (O_APPEND if "a" in found else O_TRUNC)
    outputs, status = [], 0
    for path in paths:
        try:
            outputs.append((path, FileStream(context.shell.fs.open(context.path(path), flags))))
        except FsError as error:
            status = context.error(f"{path}: {error.strerror}")
    source = context.open("-")
    try:
        while chunk := (yield from context.read(source)):
            context.out(chunk)
            yield from context.room()
            for path, stream in outputs:
                try:
                    stream.write(chunk)
                except ShellIOError as error:
                    status = context.error(f"{path}: {FsError(error.errno).strerror}")
    finally:
        source.release()
        for _, stream in outputs:
            stream.release()
    return status


@command("seq", "[FIRST [STEP]] LAST", "print numbers")
def seq(context: Context) -> int:
    """Print the numbers from FIRST to LAST."""
    try:
        numbers = [int(word) for word in context.arguments]
    except ValueError:
        raise CommandError(f"invalid number in '{' '.join(context.arguments)}'") from None
    if not 1 <= len(numbers) <= 3:
        raise CommandError("usage: seq [FIRST [STEP]] LAST")
    first = numbers[0] if len(numbers) > 1 else 1
    step = numbers[1] if len(numbers) == 3 else 1
    if not step or abs(numbers[-1] - first) // abs(step) > 1_000_000:
        raise CommandError("too many numbers")
    context.out("".join(f"{n}\n" for n in range(first, numbers[-1] + (1 if step > 0 else -1), step)))
    return 0
