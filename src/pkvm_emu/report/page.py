"""Puts the page together: one HTML file with its style, its program and its data, which asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkvm_emu.errors import UsageError
from pkvm_emu.report.data import Called, page_data

if TYPE_CHECKING:
    from pkvm_emu.tracing.timeline.recorder import Timeline

#: In the order in which they are run, inside one function.
_SCRIPTS = ("model.js", "tables.js", "timeline.js", "memory.js", "main.js")


def save_html(path: str | Path, timeline: Timeline, calls: Sequence[Called] = ()) -> None:
    """Write the page about a recording.

    Args:
        path: the file.
        timeline: what was recorded (``system.timeline``).
        calls: calls to list, as name, arguments and result in words.

    Raises:
        UsageError: the file cannot be written.
    """
    text = to_html(timeline, calls)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: the page cannot be written there") from error


def to_html(timeline: Timeline, calls: Sequence[Called] = ()) -> str:
    """The page about a recording, as text."""
    data = page_data(timeline, calls)
    names = ", ".join(module["name"] for module in data["modules"]) or "no module"
    script = "(() => {\n'use strict';\n" + "\n".join(_read(name) for name in _SCRIPTS) + "\n})();\n"
    style = _read("page.css")
    policy = f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    # In this order: what was filled in is not looked through again.
    parts = {
        "POLICY": policy,
        "TITLE": escape(f"{names} on {data['generation']}"),
        "STYLE": style,
        "DATA": to_json(data),
        "SCRIPT": script,
    }
    page, rest = "", _read("page.html")
    for name, text in parts.items():
        before, _, rest = rest.partition(f"<!--{name}-->")
        page += before + text
    return page + rest


def to_json(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment.

    >>> to_json("</script>")
    '"\\\\u003c/script>"'
    """
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The source expression by which the page's own policy lets it use ``text``, and nothing else."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
