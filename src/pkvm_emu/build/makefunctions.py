"""The functions of GNU make that module Makefiles use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pkvm_emu.errors import BuildError

Expand = Callable[[str], str]


class UnsupportedFunction(BuildError):
    """A function that would run a program, or that nobody has taught this reader."""


@dataclass(frozen=True)
class CallContext:
    """Where a function is called: ``file:line``, the Makefile's directory, and access to variables."""

    where: str
    directory: Path
    get: Callable[[str], str]
    set: Callable[[str, str | None], None]


Function = Callable[[list[str], Expand, CallContext], str]


def split_arguments(text: str) -> list[str]:
    """*text* split at the commas that stand outside of parentheses."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        if char in "({":
            depth += 1
        elif char in ")}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def match_pattern(pattern: str, word: str) -> str | None:
    """What ``%`` in *pattern* stands for in *word* (``""`` if there is no ``%``); None if it does not match."""
    head, percent, tail = pattern.partition("%")
    if not percent:
        return "" if word == pattern else None
    if len(word) < len(head) + len(tail) or not word.startswith(head) or not word.endswith(tail):
        return None
    return word[len(head) : len(word) - len(tail)]


def _eager(function: Callable[..., str], count: int) -> Function:
    def call(raw: list[str], expand: Expand, context: CallContext) -> str:
        joined = [*raw[: count - 1], ",".join(raw[count - 1 :])] if len(raw) >= count else raw
        if len(joined) != count:
            raise BuildError(f"{context.where}: a function wants {count} arguments and gets {len(joined)}")
        return function(*map(expand, joined))

    return call


def _patsubst(pattern: str, replacement: str, text: str) -> str:
    result = []
    for word in text.split():
        stem = match_pattern(pattern.strip(), word)
        result.append(word if stem is None else replacement.strip().replace("%", stem, 1))
    return " ".join(result)


def _filter(patterns: str, text: str) -> str:
    return " ".join(w for w in text.split() if any(match_pattern(p, w) is not None for p in patterns.split()))


def _filter_out(patterns: str, text: str) -> str:
    return " ".join(w for w in text.split() if all(match_pattern(p, w) is None for p in patterns.split()))


def _word(number: str, text: str) -> str:
    words = text.split()
    index = int(number) if number.strip().isdigit() else 0
    return words[index - 1] if 0 < index <= len(words) else ""


def _dir(text: str) -> str:
    return " ".join(w.rpartition("/")[0] + "/" if "/" in w else "./" for w in text.split())


def _absolute(text: str) -> str:
    return " ".join(str(Path(w).absolute()) for w in text.split())


def _wildcard(raw: list[str], expand: Expand, context: CallContext) -> str:
    found = []
    for pattern in expand(",".join(raw)).split():
        if PurePosixPath(pattern).is_absolute():
            root = Path(pattern).anchor
            found += sorted(str(path) for path in Path(root).glob(str(PurePosixPath(pattern).relative_to(root))))
        else:
            names = context.directory.glob(pattern)
            found += sorted(path.relative_to(context.directory).as_posix() for path in names)
    return " ".join(found)


def _if(raw: list[str], expand: Expand, context: CallContext) -> str:
    if expand(raw[0].strip()):
        return expand(raw[1]) if len(raw) > 1 else ""
    return expand(",".join(raw[2:]))


def _or(raw: list[str], expand: Expand, context: CallContext) -> str:
    return next((value for value in (expand(part.strip()) for part in raw) if value), "")


def _and(raw: list[str], expand: Expand, context: CallContext) -> str:
    value = ""
    for part in raw:
        value = expand(part.strip())
        if not value:
            return ""
    return value


def _foreach(raw: list[str], expand: Expand, context: CallContext) -> str:
    if len(raw) < 3:
        raise BuildError(f"{context.where}: $(foreach) wants a variable, a list and a text")
    name, result = expand(raw[0]).strip(), []
    for word in expand(raw[1]).split():
        context.set(name, word)
        result.append(expand(",".join(raw[2:])))
    context.set(name, None)
    return " ".join(result)


def _shell(raw: list[str], expand: Expand, context: CallContext) -> str:
    command = " ".join(expand(",".join(raw)).split())
    known = {
        "pwd": str(context.directory.absolute()),
        "uname -r": context.get("KERNELRELEASE"),
        "uname -m": "aarch64",
    }
    if command in known:
        return known[command]
    raise UnsupportedFunction(f"{context.where}: $(shell {command}) is not run by pkvm-emu: write its result instead")


def _error(raw: list[str], expand: Expand, context: CallContext) -> str:
    raise BuildError(f"{context.where}: {expand(','.join(raw))}")


def _quiet(raw: list[str], expand: Expand, context: CallContext) -> str:
    return ""


FUNCTIONS: dict[str, Function] = {
    "addprefix": _eager(lambda prefix, text: " ".join(prefix + w for w in text.split()), 2),
    "addsuffix": _eager(lambda suffix, text: " ".join(w + suffix for w in text.split()), 2),
    "abspath": _eager(_absolute, 1),
    "and": _and,
    "basename": _eager(lambda text: " ".join(str(PurePosixPath(w).with_suffix("")) for w in text.split()), 1),
    "dir": _eager(_dir, 1),
    "error": _error,
    "filter": _eager(_filter, 2),
    "filter-out": _eager(_filter_out, 2),
    "findstring": _eager(lambda needle, text: needle if needle in text else "", 2),
    "firstword": _eager(lambda text: _word("1", text), 1),
    "foreach": _foreach,
    "if": _if,
    "info": _quiet,
    "lastword": _eager(lambda text: (text.split() or [""])[-1], 1),
    "notdir": _eager(lambda text: " ".join(w.rpartition("/")[2] for w in text.split()), 1),
    "or": _or,
    "patsubst": _eager(_patsubst, 3),
    "realpath": _eager(_absolute, 1),
    "shell": _shell,
    "sort": _eager(lambda text: " ".join(sorted(set(text.split()))), 1),
    "strip": _eager(lambda text: " ".join(text.split()), 1),
    "subst": _eager(lambda old, new, text: text.replace(old, new), 3),
    "warning": _quiet,
    "wildcard": _wildcard,
    "word": _eager(_word, 2),
    "words": _eager(lambda text: str(len(text.split())), 1),
}
