"""The build's failures and its log."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from threading import Lock

from pkvm_emu.errors import BuildError

_DIAGNOSTIC = re.compile(r"^(?P<where>[^\s:][^:\n]*:\d+(?::\d+)?): (?:fatal )?error: (?P<text>.*)$", re.MULTILINE)
_LINK_PLACE = re.compile(r"^>>> ((?:defined at|defined in|referenced by) \S+)", re.MULTILINE)
_TOOL_ERROR = re.compile(r"^(?:\S+: )?error: (?P<text>.*)$", re.MULTILINE)


class ToolError(BuildError):
    """A compiler or linker run failed. ``output`` is all that the tool said, ``command`` what was run."""

    def __init__(self, message: str, output: str = "", command: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.output = output
        self.command = tuple(command)


def first_error(output: str) -> str | None:
    """The first error of a compiler's or linker's *output* as ``file:line:column: text``, or None."""
    match = _DIAGNOSTIC.search(output)
    if match:
        return f"{match['where']}: {match['text']}"
    match = _TOOL_ERROR.search(output)
    if match is None:
        return None
    places = _LINK_PLACE.findall(output[match.end() :].partition("\n\n")[0])
    return f"{match['text']} ({', '.join(places)})" if places else match["text"]


class BuildLog:
    """What a build did, in order: one line a step, notes and warnings, and the commands run."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.lines: list[str] = []
        self.commands: list[str] = []

    def step(self, verb: str, what: object) -> None:
        """Record a step in the style of a kernel build: ``  CC [M]  el1.o``."""
        with self._lock:
            self.lines.append(f"  {verb:<7} {what}")

    def note(self, text: str) -> None:
        """Record a remark or a tool's warnings, without repeating one."""
        with self._lock:
            if text and text not in self.lines:
                self.lines.append(text)

    def command(self, argv: Sequence[str]) -> None:
        """Record a command line, quoted so that a shell can run it again."""
        with self._lock:
            self.commands.append(shlex.join(argv))

    @property
    def text(self) -> str:
        """The log as text, one entry a line."""
        return "".join(line.rstrip("\n") + "\n" for line in self.lines)
