"""The text of an event from its print format, where the module's own print function cannot run.

A print format is what stands behind ``print fmt:``: a C string, and expressions of ``REC->field``. Those that are one field, with
casts and parentheses around it, are understood; where one is not, all fields are shown by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_STRING = re.compile(r'\s*"((?:[^"\\]|\\.)*)"')
_FIELD = re.compile(
    r"(?:\s|\(|\)|\*|\b(?:void|const|unsigned|signed|long|int|short|char|u8|u16|u32|u64|s8|s16|s32|s64)\b)*"
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "e": "\x1b"}


def format_values(print_fmt: str, fields: dict[str, int], render: Callable[[bytes, list[int]], bytes]) -> bytes:
    """The text of an event.

    Args:
        print_fmt: its print format.
        fields: its fields.
        render: formats a ``printk`` format with numbers as arguments.

    >>> format_values('"id=%llu", REC->id', {"id": 7}, lambda fmt, values: fmt.replace(b"%llu", b"%d") % tuple(values))
    b'id=7'
    """
    text, rest = _c_string(print_fmt)
    values = []
    for expression in _arguments(rest):
        match = re.search(r"REC->(\w+)", expression)
        around = (expression[: match.start()] + expression[match.end() :]) if match else ""
        if match is None or match[1] not in fields or not _FIELD.fullmatch(around):
            return " ".join(f"{name}={value:#x}" for name, value in fields.items()).encode()
        values.append(fields[match[1]])
    return render(text.encode("latin-1", "replace"), values)


def _c_string(text: str) -> tuple[str, str]:
    """The string literals that ``text`` begins with, joined, and what follows them."""
    out, position = "", 0
    while match := _STRING.match(text, position):
        out += re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), match[1])
        position = match.end()
    return out, text[position:]


def _arguments(text: str) -> list[str]:
    """The expressions behind the commas, split where no parenthesis is open."""
    out, depth, current = [], 0, ""
    for char in text.strip().removeprefix(","):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            out.append(current)
            current = ""
        else:
            current += char
    return [part for part in (*out, current) if part.strip()]
