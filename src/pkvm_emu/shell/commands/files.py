"""Commands that look at files and directories."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pkvm_emu.kernel.fs import Directory, FsError, Node, Symlink
from pkvm_emu.shell.command import CommandError, Context, command
from pkvm_emu.shell.pattern import Piece, to_regex

#: The emulated kernel has no clock of the day.
_DATE = "Jan  1 00:00"


def mode_text(node: Node) -> str:
    """``-rw-r--r--``."""
    bits = "".join(letter if node.mode & 1 << 8 - at else "-" for at, letter in enumerate("rwxrwxrwx"))
    if node.mode & 0o1000:
        bits = bits[:-1] + ("t" if bits[-1] == "x" else "T")
    return node.type_letter + bits


def _long(node: Node, name: str) -> str:
    links = 1
    if isinstance(node, Directory):
        links = 2 + sum(isinstance(node.lookup(entry), Directory) for entry in node.entries())
    size = f"{node.size:9}" if node.device is None else f"{node.device[0]:4}, {node.device[1]:3}"
    target = f" -> {node.target}" if isinstance(node, Symlink) else ""
    return f"{mode_text(node)} {links:4} {0:<8} {0:<8} {size} {_DATE} {name}{target}\n"


@command("ls", "[-ldaR1] [FILE...]", "list directories")
def ls(context: Context) -> int:
    """List files and directories, one name a line."""
    found, paths = context.options("ldaAR1hFp")
    files: list[tuple[str, Node]] = []
    directories: list[tuple[str, Directory]] = []
    status = 0
    for path in sorted(paths) or ["."]:
        try:
            node = context.shell.fs.resolve(context.path(path), follow="l" not in found)
        except FsError as error:
            status = context.error(f"{path}: {error.strerror}")
            continue
        if isinstance(node, Directory) and "d" not in found:
            directories.append((path, node))
        else:
            files.append((path, node))
    blocks = []
    if files:
        blocks.append("".join(_long(node, path) if "l" in found else f"{path}\n" for path, node in files))
    titled = len(paths) > 1 or "R" in found
    while directories:
        path, directory = directories.pop(0)
        entries = _entries(directory, found)
        text = f"{path}:\n" if titled else ""
        if "l" in found:
            text += "total 0\n"
        blocks.append(text + "".join(_long(node, name) if "l" in found else f"{name}\n" for name, node in entries))
        if "R" in found:
            below = [(f"{path.rstrip('/')}/{name}", node) for name, node in entries if isinstance(node, Directory)]
            directories = [pair for pair in below if not pair[0].endswith(("/.", "/.."))] + directories
    context.out("\n".join(blocks))
    return status


def _entries(directory: Directory, found: dict[str, str]) -> list[tuple[str, Node]]:
    dots = [(".", directory), ("..", directory)] if "a" in found else []
    names = [name for name in sorted(directory.entries()) if "a" in found or "A" in found or not name.startswith(".")]
    nodes = [(name, directory.lookup(name)) for name in names]
    return [*dots, *((name, node) for name, node in nodes if node is not None)]


@command(
    "find", "[PATH...] [-type d|f|c|l] [-name PATTERN] [-path PATTERN] [-maxdepth N]", "list files below directories"
)
def find(context: Context) -> int:
    """Print every path below the given ones that passes all tests, directories before what is in them."""
    words = list(context.arguments)
    paths = []
    while words and not words[0].startswith(("-", "!", "(")):
        paths.append(words.pop(0))
    tests = _find_tests(words)
    status = 0
    for start in paths or ["."]:
        try:
            node = context.shell.fs.resolve(context.path(start))
        except FsError as error:
            status = context.error(f"{start}: {error.strerror}")
            continue
        for path, found in _below(start, node, tests["maxdepth"]):
            if _passes(path, found, tests):
                context.out(f"{path}\n")
    return status


def _find_tests(words: list[str]) -> dict[str, str]:
    tests = {"type": "", "name": "", "path": "", "maxdepth": "64"}
    while words:
        option = words.pop(0)
        if option == "-print":
            continue
        name = option[1:]
        if name not in tests or not words:
            raise CommandError(f"unrecognized: {option}")
        tests[name] = words.pop(0)
    if not tests["maxdepth"].isdigit() or tests["type"] not in ("", "d", "f", "c", "l"):
        raise CommandError("bad argument to -maxdepth or -type")
    return tests


def _below(path: str, node: Node, depth: str) -> Iterator[tuple[str, Node]]:
    yield path, node
    if isinstance(node, Directory) and int(depth):
        for name in sorted(node.entries()):
            child = node.lookup(name)
            if child is not None:
                yield from _below(f"{path.rstrip('/')}/{name}", child, str(int(depth) - 1))


def _passes(path: str, node: Node, tests: dict[str, str]) -> bool:
    wanted = tests["type"].replace("f", "-")
    if wanted and node.type_letter != wanted:
        return False
    name = path.rstrip("/").rpartition("/")[2] or path
    return all(
        not tests[key] or re.fullmatch(to_regex([Piece(tests[key], False)]), text, re.DOTALL)
        for key, text in (("name", name), ("path", path))
    )


@command("mkdir", "[-p] DIRECTORY...", "make directories")
def mkdir(context: Context) -> int:
    """Make directories, with ``-p`` those above them too."""
    found, paths = context.options("p", "m")
    status = 0
    for path in paths:
        full = context.path(path)
        parts = [part for part in full.split("/") if part]
        steps = ["/" + "/".join(parts[:n]) for n in range(1, len(parts) + 1)] if "p" in found else [full]
        for step in steps:
            if "p" in found and isinstance(context.shell.fs.find(step), Directory):
                continue
            try:
                context.shell.fs.mkdir(step)
            except FsError as error:
                status = context.error(f"can't create directory '{path}': {error.strerror}")
                break
    return status


@command("rm", "[-rf] FILE...", "remove files")
def rm(context: Context) -> int:
    """Remove files; with ``-r`` directories and what is in them."""
    found, paths = context.options("rfR")
    status = 0
    for path in paths:
        full = context.path(path)
        try:
            node = context.shell.fs.resolve(full, follow=False)
            if isinstance(node, Directory):
                if not {"r", "R"} & found.keys():
                    raise FsError(21, full)
                for below, _ in reversed(list(_below(full, node, "64"))):
                    context.shell.fs.remove(below)
            else:
                context.shell.fs.remove(full)
        except FsError as error:
            if "f" not in found or error.errno != 2:
                status = context.error(f"can't remove '{path}': {error.strerror}")
    return status


@command("touch", "FILE...", "make empty files")
def touch(context: Context) -> int:
    """Make files that are not there."""
    from pkvm_emu.kernel.fs.node import O_CREAT, O_WRONLY

    status = 0
    for path in context.arguments:
        full = context.path(path)
        if context.shell.fs.find(full) is not None:
            continue
        try:
            context.shell.fs.open(full, O_WRONLY | O_CREAT).close()
        except FsError as error:
            status = context.error(f"{path}: {error.strerror}")
    return status


@command("cd", "[DIRECTORY]", "change the working directory", builtin=True)
def cd(context: Context) -> int:
    """Change the working directory."""
    target = context.arguments[0] if context.arguments else "/"
    parts: list[str] = []
    for part in context.path(target).split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    path = "/" + "/".join(parts)
    node = context.shell.fs.find(path)
    if not isinstance(node, Directory):
        raise CommandError(f"can't cd to {target}: {'Not a directory' if node else 'No such file or directory'}", 2)
    context.shell.cwd = path
    return 0


@command("pwd", "", "print the working directory", builtin=True)
def pwd(context: Context) -> int:
    """Print the working directory."""
    context.out(f"{context.shell.cwd}\n")
    return 0


@command("mount", "[-t TYPE DEVICE DIRECTORY]", "what is mounted; mounting again does nothing")
def mount(context: Context) -> int:
    """The file systems of the emulated kernel are mounted from the start, so mounting one of them succeeds."""
    _, words = context.options("ro", "to")
    if words and not isinstance(context.shell.fs.find(context.path(words[-1])), Directory):
        raise CommandError(f"mounting {words[0]} on {words[-1]} failed: No such file or directory")
    return 0
