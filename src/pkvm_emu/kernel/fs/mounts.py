"""Where file systems are mounted: what can be created below each directory, and the error where nothing can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import ENOENT
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.node import EACCES
from pkvm_emu.kernel.fs.registry import provider

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.filesystem import FileSystem
    from pkvm_emu.kernel.kernel import Kernel

#: Path, mode, and the errno of creating a file there (None: it can be created).
_MOUNTS = (
    ("/proc", 0o555, ENOENT),
    ("/sys", 0o755, EACCES),
    ("/sys/kernel/debug", 0o700, EACCES),
    ("/sys/kernel/tracing", 0o700, EACCES),
    ("/dev", 0o755, None),
    ("/tmp", 0o1777, None),
    ("/lib/modules", 0o755, None),
)


@provider
def mount_points(kernel: Kernel, fs: FileSystem) -> None:
    """The directories of an initramfs and what is mounted on them."""
    for path, mode, errno in _MOUNTS:
        fs.add(path, MemoryDirectory(fs.journal, errno is None, mode, errno or 0))
