"""How files get into the tree: a decorated function or class, one line each.

>>> @text_file("/proc/cmdline")
... def cmdline(kernel: Kernel) -> str:
...     return f"{kernel.command_line}\\n"

>>> @node("/dev/null")
... class Null(File):
...     mode = 0o666
...     def __init__(self, kernel: Kernel) -> None: ...
...     def read(self, handle, offset, size): return b""
...     def write(self, handle, offset, data): return len(data)

>>> @provider
... def tracing(kernel: Kernel, fs: FileSystem) -> None:          # where the path depends on the kernel
...     fs.add(f"/sys/kernel/tracing/{kernel.generation.tracefs_dir}/tracing_on", TracingOn(kernel))

The functions run when somebody first looks at a kernel's files. Files that come later (a module's debugfs entries) are added
with ``kernel.part(FileSystem).add(path, node)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pkvm_emu.kernel.fs.node import Node, TextFile

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.filesystem import FileSystem
    from pkvm_emu.kernel.kernel import Kernel

Provider = Callable[["Kernel", "FileSystem"], None]
P = TypeVar("P", bound=Provider)
C = TypeVar("C", bound=Callable[[Any], Node])
F = TypeVar("F", bound=Callable[[Any], "str | bytes | int"])

#: Run for each new file system, in the order of registration.
PROVIDERS: list[Provider] = []


def provider(function: P) -> P:
    """Call ``function(kernel, fs)`` for each new kernel: it adds nodes."""
    PROVIDERS.append(function)
    return function


def node(path: str) -> Callable[[C], C]:
    """Put ``cls(kernel)`` at ``path``; the directories above it are made."""

    def register(cls: C) -> C:
        PROVIDERS.append(lambda kernel, fs: fs.add(path, cls(kernel)))
        return cls

    return register


def text_file(path: str, mode: int = 0o444) -> Callable[[F], F]:
    """Put a read-only file at ``path`` whose contents the function gives, called with the kernel at each read."""

    def register(function: F) -> F:
        PROVIDERS.append(lambda kernel, fs: fs.add(path, TextFile(lambda: function(kernel), mode=mode)))
        return function

    return register
