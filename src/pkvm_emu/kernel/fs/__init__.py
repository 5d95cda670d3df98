"""The kernel's files: procfs, sysfs, /dev, and a root in memory. Importing this package registers them."""

from __future__ import annotations

from pkvm_emu.kernel.fs import cpus, devices, kmsg, procfs, sysfs, tracefs  # noqa: F401  their import registers files
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory, MemoryFile
from pkvm_emu.kernel.fs.node import WOULD_BLOCK, Directory, File, FsError, Node, Symlink, TextFile
from pkvm_emu.kernel.fs.open_file import OpenFile
from pkvm_emu.kernel.fs.registry import node, provider, text_file
from pkvm_emu.kernel.fs.result import FileResult
from pkvm_emu.kernel.initramfs import files as _initramfs_files  # noqa: F401  its import registers files

__all__ = [
    "WOULD_BLOCK",
    "Directory",
    "File",
    "FileResult",
    "FileSystem",
    "FsError",
    "MemoryDirectory",
    "MemoryFile",
    "Node",
    "OpenFile",
    "Symlink",
    "TextFile",
    "node",
    "provider",
    "text_file",
]
