"""Command lines of gdb and lldb that attach to the server, with sources mapped; and how to start them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pkvm_emu.errors import UsageError

#: The programs that understand AArch64, the best first.
GDB = ("gdb-multiarch", "aarch64-linux-gnu-gdb", "gdb")
LLDB = ("lldb",)
#: Where lldb is to go by our unwind rules from the first instruction on, and not by an analysis of its own.
TRAP_HANDLERS = ("vector_host_sync", "vector_guest_sync", "vector_hyp_sync", "host_exit")


def gdb_commands(address: str, sources: Sequence[tuple[str, str]] = ()) -> list[str]:
    """What gdb is told: the architecture, where sources are, whom to connect to. Symbols come over the connection.

    Args:
        address: ``host:port`` or the path of a Unix socket.
        sources: directories as the compiler recorded them, and where they are here.
    """
    lines = ["set architecture aarch64", "set breakpoint pending on"]
    lines += [f"set substitute-path {_quoted(old)} {_quoted(new)}" for old, new in sources]
    return [*lines, f"target remote {address}"]


def lldb_commands(address: str, files: Sequence[str], sources: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The same for lldb, which takes the files with symbols from the disk.

    Args:
        address: ``host:port``, or the path of a Unix socket.
        files: ELF files, linked at their addresses.
        sources: as for :func:`gdb_commands`.
    """
    lines = [
        "settings set target.load-script-from-symbol-file false",
        f"settings set target.trap-handler-names {' '.join(TRAP_HANDLERS)}",
        # A step runs from branch to branch otherwise, and an HVC is none for lldb.
        "settings set target.use-fast-stepping false",
    ]
    first, *others = files
    lines += [f"target create --arch aarch64-unknown-none {_quoted(first)}"]
    lines += [f"target modules add {_quoted(path)}" for path in others]
    for old, new in sources:
        lines.append(f"settings append target.source-map {_quoted(old)} {_quoted(new)}")
    where = f"unix-connect://{address}" if "/" in address else f"connect://{address}".replace("://:", "://127.0.0.1:")
    return [*lines, f"process connect --plugin gdb-remote {where}"]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if any(c in text for c in ' "\\') else text


def find_program(kind: str) -> str:
    """The path of gdb or lldb.

    Raises:
        UsageError: it is not installed.
    """
    names = GDB if kind == "gdb" else LLDB
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise UsageError(f"--launch {kind}: none of {', '.join(names)} is installed")


def start(kind: str, commands: Sequence[str], directory: Path, is_batch: bool = False) -> subprocess.Popen[bytes]:
    """Start the debugger on this terminal with a command file in ``directory``; ``is_batch``: it ends after them."""
    program = find_program(kind)
    script = directory / f"{kind}.commands"
    script.write_text("\n".join(commands) + "\n")
    if kind == "gdb":
        return subprocess.Popen([program, "-q", *(["-batch"] if is_batch else []), "-x", str(script)])
    return subprocess.Popen([program, *(["--batch"] if is_batch else []), "-s", str(script)])
