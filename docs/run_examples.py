"""Run the examples of the documentation, and compare or rewrite what they print.

    python docs/run_examples.py            # all documents: differences on stdout, exit status 1 if there are any
    python docs/run_examples.py --write    # put what is printed now into the documents
    python docs/run_examples.py README.md docs/running.md

Two kinds of fenced blocks are executed, in the order of the document, in a directory that holds a copy of ``modules/``,
``examples/`` and ``docs/examples/``:

* ``console`` blocks: each line that begins with ``$ `` is run by bash with ``pkvm-emu`` and ``python`` being those of this
  interpreter; the lines after it are what it prints, both streams together. Lines that begin with ``/ # `` are typed
  into it (``pkvm-emu shell``).
* ``python example`` blocks: run as a script. What they print follows in a ``text`` block; without one they print nothing.

The environment is fixed: no compiler but the ``ziglang`` package, no user settings. Only paths of the temporary directory are
replaced in the output. Needs nothing but the standard library and an installed ``pkvm_emu``.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Programs that examples may use, besides ``pkvm-emu`` and ``python``.
TOOLS = (
    "bash",
    "cat",
    "cp",
    "echo",
    "env",
    "gdb-multiarch",
    "grep",
    "head",
    "ls",
    "make",
    "mkdir",
    "sed",
    "sh",
    "tail",
    "wc",
)
#: What the temporary directory is called in the documents.
SHOWN_DIRECTORY = "/home/me/pkvm_emu"
_TIMEOUT_SECONDS = 120
_COMMAND, _PROMPT = "$ ", "/ # "
#: Printed by the shell between what two typed lines print.
_BETWEEN = "---- next line ----"
_SEPARATE = f"echo '{_BETWEEN}'\n"
_NEVER_SHOWN = ("Traceback (most recent call last)", "internal error", "command not found")
_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`]*)$")
_KDIR = re.compile(r"kdir-[0-9a-f]{12}")


class ExampleError(Exception):
    """An example that does not do what a document may show."""


class Block:
    """One fenced block: its info string, its lines, and where it stands in the document (indices of the fence lines)."""

    def __init__(self, info: str, lines: list[str], start: int, end: int) -> None:
        self.info = info
        self.lines = lines
        self.start = start
        self.end = end

    @property
    def is_console(self) -> bool:
        """Commands with their output."""
        return self.info == "console"

    @property
    def is_script(self) -> bool:
        """A Python example."""
        return self.info == "python example"


def documents() -> list[Path]:
    """README.md and every page of docs/ but the generated reference."""
    pages = sorted(path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts)
    return [ROOT / "README.md", *pages]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document."""
    found: list[Block] = []
    lines = text.split("\n")
    index = 0
    while index < len(lines):
        opening = _FENCE.match(lines[index])
        if opening is None:
            index += 1
            continue
        end = next((n for n in range(index + 1, len(lines)) if lines[n] == opening["fence"]), len(lines))
        found.append(Block(opening["info"].strip(), lines[index + 1 : end], index, end))
        index = end + 1
    return found


def has_examples(text: str) -> bool:
    """Whether anything in the document is executed."""
    return any(block.is_console or block.is_script for block in blocks(text))


class Sandbox:
    """A directory that looks like a source tree, and an environment that depends on this interpreter alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "pkvm_emu"
        ignore = shutil.ignore_patterns("build-out", "*.ko", "*.o", "include")
        shutil.copytree(ROOT / "modules", self.directory / "modules", ignore=ignore)
        shutil.copytree(ROOT / "docs" / "examples", self.directory / "docs" / "examples", ignore=ignore)
        shutil.copytree(ROOT / "examples", self.directory / "examples", ignore=ignore)
        programs = directory / "bin"
        programs.mkdir()
        for name, call in (("python", 'exec {0} "$@"'), ("pkvm-emu", 'exec {0} -m pkvm_emu "$@"')):
            shim = programs / name
            shim.write_text(f"#!/bin/sh\n{call.format(_quote(sys.executable))}\n")
            shim.chmod(0o755)
        for name in TOOLS:
            found = shutil.which(name)
            if found is not None:
                (programs / name).symlink_to(found)
        self.environment = {
            "PATH": str(programs),
            "HOME": str(directory),
            "XDG_CACHE_HOME": str(self.directory / ".cache"),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, command: Sequence[str], must_succeed: bool = False, typed: str = "") -> str:
        """What ``command`` prints, both streams, with the temporary directory renamed.

        Raises:
            ExampleError: it fails though ``must_succeed``, or ends in a traceback.
        """
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
        if any(mark in done.stdout for mark in _NEVER_SHOWN) or (must_succeed and done.returncode):
            raise ExampleError(f"{' '.join(command)}\n{done.stdout}")
        output = done.stdout.replace(str(self.directory), SHOWN_DIRECTORY)
        return _KDIR.sub("kdir-0123456789ab", output)


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A :class:`Sandbox` in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="pkvm-emu-docs-") as name:
        yield Sandbox(Path(name).resolve())


def run_console(block: Block, place: Sandbox) -> list[str]:
    """The block's lines as they should be now."""
    lines: list[str] = []
    for index, line in enumerate(block.lines):
        if line.startswith(_COMMAND):
            later = block.lines[index + 1 :]
            end = next((n for n, other in enumerate(later) if other.startswith(_COMMAND)), len(later))
            typed = [other for other in later[:end] if other.startswith(_PROMPT)]
            script = "".join(f"{_SEPARATE}{other.removeprefix(_PROMPT)}\n" for other in typed)
            parts = place.run(["bash", "-c", line.removeprefix(_COMMAND)], typed=script).split(f"{_BETWEEN}\n")
            if len(parts) != 1 + len(typed):
                raise ExampleError(f"{line}\nends before all of its lines are typed:\n{parts[-1]}")
            for shown, output in zip([line, *typed], parts, strict=True):
                lines.append(shown)
                lines += [text.rstrip() for text in output.rstrip("\n").split("\n")] if output.strip() else []
    return lines


def refreshed(text: str) -> str:
    """The document with the output of its examples as it is now."""
    lines = text.split("\n")
    found = blocks(text)
    edits: list[tuple[int, int, list[str]]] = []
    with sandbox() as place:
        for index, block in enumerate(found):
            if block.is_console:
                edits.append((block.start + 1, block.end, run_console(block, place)))
            elif block.is_script:
                script = place.directory / "example.py"
                script.write_text("\n".join(block.lines) + "\n")
                output = place.run([sys.executable, str(script)], must_succeed=True).rstrip("\n")
                following = found[index + 1] if index + 1 < len(found) else None
                if following is not None and following.info == "text" and following.start == block.end + 2:
                    edits.append((following.start + 1, following.end, output.split("\n")))
                elif output:
                    edits.append((block.end + 1, block.end + 1, ["", "```text", *output.split("\n"), "```"]))
    for start, end, new in reversed(edits):
        lines[start:end] = new
    return "\n".join(lines)


def difference(path: Path) -> str:
    """A unified diff from the document to what it should be; empty if its examples print what it says."""
    text = path.read_text()
    if not has_examples(text):
        return ""
    name = str(path.relative_to(ROOT))
    new = refreshed(text)
    return "\n".join(
        difflib.unified_diff(text.split("\n"), new.split("\n"), name, f"{name} (as run)", lineterm="", n=2)
    )


def _quote(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def main(arguments: Sequence[str]) -> int:
    """Check or rewrite; the exit status."""
    write = "--write" in arguments
    chosen = [Path(word).resolve() for word in arguments if not word.startswith("-")] or documents()
    status = 0
    for path in chosen:
        if not has_examples(path.read_text()):
            continue
        try:
            found = difference(path)
            if found and write:
                path.write_text(refreshed(path.read_text()))
                print(f"{os.path.relpath(path)}: rewritten")
            elif found:
                print(found)
                status = 1
        except ExampleError as error:
            print(f"{os.path.relpath(path)}: an example fails: {error}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
