"""Commands for device files: ioctl, mknod, readlink."""

from __future__ import annotations

import re

from pkvm_emu.errors import UsageError
from pkvm_emu.kernel.fs import FsError, Symlink, ioctl
from pkvm_emu.kernel.fs.node import O_RDONLY, O_RDWR
from pkvm_emu.shell.command import CommandError, Context, command

_CALL = re.compile(r"\s*_?(IO|IOR|IOW|IOWR)\s*\(\s*(?:'(.)'|(\w+))\s*,\s*(\w+)\s*(?:,\s*(\w+)\s*)?\)\s*", re.IGNORECASE)
_MAKERS = {"ior": ioctl.ior, "iow": ioctl.iow, "iowr": ioctl.iowr}


def _number(text: str, what: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise CommandError(f"{what} '{text}' is no number") from None


def ioctl_number(text: str) -> int:
    """A command as people write it: a number, or ``_IOWR('p', 3, 16)`` with the size of the structure in bytes.

    Raises:
        CommandError: it is neither.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        return _number(text, "command") & 0xFFFF_FFFF
    maker, letter, kind, number, size = match.groups()
    code: str | int = letter or _number(kind, "type")
    try:
        if maker.lower() == "io":
            return ioctl.io(code, _number(number, "number"))
        if size is None:
            raise CommandError(f"{text}: the size of the structure is missing")
        return _MAKERS[maker.lower()](code, _number(number, "number"), _number(size, "size"))
    except UsageError as error:
        raise CommandError(str(error)) from None


def _argument(words: list[str], command_number: int) -> int | bytearray:
    if not words:
        size = ioctl.size_of(command_number)
        return bytearray(size) if size else 0
    word = words[0]
    if not word.startswith("hex:"):
        return _number(word, "argument")
    try:
        data = bytearray.fromhex(word.removeprefix("hex:"))
    except ValueError:
        raise CommandError(f"'{word}' is no hex:BYTES") from None
    # A structure that is given in part is filled up.
    return data.ljust(ioctl.size_of(command_number), b"\0")


@command("ioctl", "FILE COMMAND [NUMBER|hex:BYTES]", "make an ioctl on a file")
def make_ioctl(context: Context) -> int:
    """Print what the driver returned, and in hex what it left in the structure.

    COMMAND is a number or like ``"_IOWR('p', 3, 16)"``. Where it has a size and no argument is given, it points at zeros.
    """
    if not 2 <= len(context.arguments) <= 3:
        raise CommandError("usage: ioctl FILE COMMAND [NUMBER|hex:BYTES]", 2)
    path, word, *rest = context.arguments
    number = ioctl_number(word)
    argument = _argument(rest, number)
    fs = context.shell.fs
    try:
        try:
            handle = fs.open(context.path(path), O_RDWR)
        except FsError as error:
            if error.errno not in (13, 30):
                raise
            handle = fs.open(context.path(path), O_RDONLY)
    except FsError as error:
        return context.error(f"{path}: {error.strerror}")
    with handle:
        result = handle.ioctl(number, argument)
    if not result.ok:
        return context.error(f"{path}: {ioctl.describe(number)}: {FsError(-result).strerror} ({result.error})")
    context.out(f"{int(result)}\n")
    if result.data:
        context.out(f"{result.data.hex(' ', 4)}\n")
    return 0


@command("mknod", "FILE c MAJOR MINOR", "make a character device node")
def mknod(context: Context) -> int:
    """Make a node; opening it finds the driver of that number."""
    if len(context.arguments) != 4 or context.arguments[1] not in ("c", "u"):
        raise CommandError("usage: mknod FILE c MAJOR MINOR", 2)
    path, _, major, minor = context.arguments
    try:
        context.shell.fs.mknod(context.path(path), _number(major, "major"), _number(minor, "minor"), 0o644)
    except FsError as error:
        return context.error(f"{path}: {error.strerror}")
    return 0


@command("readlink", "LINK...", "print where symbolic links lead")
def readlink(context: Context) -> int:
    """Print the target of each; status 1 for what is no link."""
    status = 0
    for path in context.arguments:
        node = context.shell.fs.find_link(context.path(path))
        if isinstance(node, Symlink):
            context.out(f"{node.target}\n")
        else:
            status = 1
    return status
