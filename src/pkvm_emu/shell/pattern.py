"""Patterns of the shell (``*``, ``?``, ``[...]``): matching text, and finding files."""

from __future__ import annotations

import re
from typing import NamedTuple

from pkvm_emu.kernel.fs import Directory, FileSystem

_SPECIAL = frozenset("*?[")


class Piece(NamedTuple):
    """Part of an expanded word: quoted characters stand for themselves."""

    text: str
    quoted: bool


def has_pattern(pieces: list[Piece]) -> bool:
    """Whether any unquoted character makes it a pattern."""
    return any(not piece.quoted and _SPECIAL & set(piece.text) for piece in pieces)


def to_regex(pieces: list[Piece], greedy: bool = True) -> str:
    """A regular expression that matches what the pattern does (without anchors)."""
    characters = [(letter, piece.quoted) for piece in pieces for letter in piece.text]
    out: list[str] = []
    index = 0
    while index < len(characters):
        letter, quoted = characters[index]
        index += 1
        if quoted:
            out.append(re.escape(letter))
        elif letter == "*":
            out.append(".*" if greedy else ".*?")
        elif letter == "?":
            out.append(".")
        elif letter == "\\" and index < len(characters):
            out.append(re.escape(characters[index][0]))
            index += 1
        elif letter == "[":
            text, index = _bracket(characters, index)
            out.append(text)
        else:
            out.append(re.escape(letter))
    return "".join(out)


def _bracket(characters: list[tuple[str, bool]], start: int) -> tuple[str, int]:
    """The set that begins behind a ``[``; a ``[`` that nothing closes is a plain one."""
    end = start
    if end < len(characters) and characters[end][0] in "!^":
        end += 1
    if end < len(characters) and characters[end][0] == "]":
        end += 1
    while end < len(characters) and characters[end] != ("]", False):
        end += 1
    if end >= len(characters):
        return re.escape("["), start
    inside = characters[start:end]
    negated = bool(inside) and inside[0] in (("!", False), ("^", False))
    members = inside[1:] if negated else inside
    body = "".join(
        "-" if (letter, quoted) == ("-", False) and 0 < at < len(members) - 1 else re.escape(letter)
        for at, (letter, quoted) in enumerate(members)
    )
    text = f"[{'^' if negated else ''}{body}]"
    try:
        re.compile(text)
    except re.error:
        return r"(?!)", end + 1
    return text, end + 1


def matches(pieces: list[Piece], text: str) -> bool:
    """Whether the whole of ``text`` matches."""
    return re.fullmatch(to_regex(pieces), text, re.DOTALL) is not None


def find_files(fs: FileSystem, pieces: list[Piece], cwd: str) -> list[str]:
    """The paths that match, sorted; an empty list when none does. Relative patterns are seen from ``cwd``."""
    components: list[list[Piece]] = [[]]
    for piece in pieces:
        for position, part in enumerate(piece.text.split("/")):
            if position:
                components.append([])
            if part:
                components[-1].append(Piece(part, piece.quoted))
    absolute = len(components) > 1 and not components[0]
    found = ["/" if absolute else ""]
    for number, component in enumerate(components):
        last = number == len(components) - 1
        if not component:
            if last and number:
                found = [path + "/" for path in found if isinstance(fs.find(_join(cwd, path)), Directory)]
            continue
        found = [name for path in found for name in _step(fs, path, component, cwd)]
    return sorted(found)


def _step(fs: FileSystem, path: str, component: list[Piece], cwd: str) -> list[str]:
    prefix = path + "/" if path and not path.endswith("/") else path
    literal = "".join(piece.text for piece in component)
    if not has_pattern(component):
        return [prefix + literal] if fs.find(_join(cwd, prefix + literal)) is not None else []
    directory = fs.find(_join(cwd, path or "."))
    if not isinstance(directory, Directory):
        return []
    expression = re.compile(to_regex(component), re.DOTALL)
    hidden = literal.startswith(".")
    return [
        prefix + name
        for name in sorted(directory.entries())
        if (hidden or not name.startswith(".")) and expression.fullmatch(name)
    ]


def _join(cwd: str, path: str) -> str:
    return path if path.startswith("/") else f"{cwd.rstrip('/')}/{path}"
