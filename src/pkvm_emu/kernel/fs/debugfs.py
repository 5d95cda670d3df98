"""Modules' files below ``/sys/kernel/debug`` (``fs/debugfs/{inode,file}.c``).

A ``struct dentry *`` that a module gets is a small structure with parent and name; what it stands for is kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import EEXIST, EIO, ENOENT, ENOMEM, is_err_value
from pkvm_emu.abi.file_structs import DENTRY_BYTES, DENTRY_NAME, DENTRY_PARENT
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.guest_file import GuestFile, Operations
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.module_files import ModuleFiles
from pkvm_emu.kernel.fs.node import ENXIO, Node, Symlink, TextFile
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

ROOT = "/sys/kernel/debug"
_DIRECTORY_MODE = 0o755


class Entry(NamedTuple):
    """A dentry: its path, and the dentry of the directory (0: the root)."""

    path: str
    parent: int


class DebugFile(GuestFile):
    """A file with a module's operations; after its removal calls give -EIO."""

    gone_errno = ENXIO

    def __init__(self, kernel: Kernel, dentry: int, mode: int, operations: int, data: int, size: int) -> None:
        super().__init__(kernel, mode)
        self._dentry = dentry
        self._operations = operations
        self._data = data
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def operations(self, handle: OpenFile) -> Operations | int:
        if self.alive(handle):
            return -ENOENT
        owner = self._kernel.memory.read_u64(self._operations)
        return Operations(self._operations, self.structs.operations, (owner,))

    def prepare(self, handle: OpenFile, inode: int, file: int) -> None:
        memory, rows = self._kernel.memory, self.structs
        memory.write_u64(inode + rows.inode.i_private, self._data)
        memory.write_u64(inode + rows.inode.i_size, self._size)

    def alive(self, handle: OpenFile) -> int:
        return 0 if self._dentry in self._kernel.part(Debugfs).entries else EIO


@kernel_part
class Debugfs(State):
    """The dentries that modules hold."""

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.debugfs")
        self._kernel = kernel
        self.entries: StateDict[int, Entry] = StateDict(journal, "kernel.debugfs.entries")

    # Making

    def make(self, name: str, parent: int, build: Callable[[int], Node]) -> int:
        """Hang a node into a directory.

        Args:
            name: its name.
            parent: dentry of the directory; 0 is the root of debugfs.
            build: makes the node of its dentry.

        Returns:
            The dentry, or a negative errno: that of an error pointer given as parent, -EEXIST, -ENOENT, -ENOMEM.
        """
        if is_err_value(parent):
            return parent - (1 << 64)
        above = ROOT if not parent else self.entries[parent].path if parent in self.entries else None
        directory = self._kernel.part(FileSystem).find(above) if above is not None else None
        if above is None or not isinstance(directory, MemoryDirectory):
            return -ENOENT
        if directory.lookup(name) is not None:
            return -EEXIST
        dentry = self._dentry(name, parent)
        if not dentry:
            return -ENOMEM
        path = f"{above}/{name}"
        self.entries[dentry] = Entry(path, parent)
        directory.add(name, build(dentry))
        if not isinstance(directory.lookup(name), MemoryDirectory):
            self._kernel.part(ModuleFiles).note(path)
        return dentry

    def _dentry(self, name: str, parent: int) -> int:
        memory = self._kernel.memory
        text = name.encode("latin-1") + b"\0"
        zero = line_facts(self._kernel.generation.kernel).gfp_zero
        address = self._kernel.part(Slab).kmalloc(DENTRY_BYTES + len(text), zero)
        if address is None:
            return 0
        memory.write(address + DENTRY_BYTES, text)
        memory.write_u64(address + DENTRY_NAME, address + DENTRY_BYTES)
        memory.write_u64(address + DENTRY_PARENT, parent or address)
        return address

    def directory(self, name: str, parent: int) -> int:
        """``debugfs_create_dir``; the dentry or -errno."""
        result = self.make(name, parent, lambda dentry: self._directory())
        if result == -EEXIST:
            shown = self.name(parent) or "/"
            self._kernel.log.write(f"debugfs: Directory '{name}' with parent '{shown}' already present!", level=3)
        return result

    def _directory(self) -> MemoryDirectory:
        return MemoryDirectory(self._kernel.machine.journal, writable=False, mode=_DIRECTORY_MODE)

    def file(self, name: str, mode: int, parent: int, data: int, operations: int, size: int = 0) -> int:
        """``debugfs_create_file`` with a module's operations; the dentry or -errno."""
        return self._reported(
            name,
            parent,
            lambda dentry: (
                DebugFile(self._kernel, dentry, mode & 0o7777, operations, data, size)
                if operations
                else TextFile(lambda: "", lambda text: 0, mode & 0o7777)
            ),
        )

    def value(self, name: str, parent: int, node: Node) -> int:
        """A file that the kernel itself serves; the dentry or -errno."""
        return self._reported(name, parent, lambda dentry: node)

    def link(self, name: str, parent: int, target: str) -> int:
        """``debugfs_create_symlink``; the dentry or -errno."""
        return self._reported(name, parent, lambda dentry: Symlink(target))

    def _reported(self, name: str, parent: int, build: Callable[[int], Node]) -> int:
        result = self.make(name, parent, build)
        if result == -EEXIST:
            shown = self.name(parent) or "/"
            self._kernel.log.write(f"debugfs: File '{name}' in directory '{shown}' already present!", level=3)
        return result

    # Finding and removing

    def name(self, dentry: int) -> str:
        """The name of a dentry; empty for the root."""
        entry = self.entries.get(dentry)
        return entry.path.rpartition("/")[2] if entry is not None else ""

    def find(self, name: str, parent: int) -> int:
        """The dentry of a name in a directory; 0 without."""
        for dentry, entry in self.entries.items():
            if entry.parent == parent and entry.path.rpartition("/")[2] == name:
                return dentry
        return 0

    def remove(self, dentry: int) -> None:
        """``debugfs_remove``: the file, or the directory with all below it."""
        entry = self.entries.get(dentry)
        if entry is None:
            return
        for below in [known for known, other in self.entries.items() if other.parent == dentry]:
            self.remove(below)
        del self.entries[dentry]
        fs = self._kernel.part(FileSystem)
        fs.discard(entry.path)
        self._kernel.part(ModuleFiles).forget(entry.path)
        self._kernel.part(Slab).kfree(dentry, "debugfs_remove")

    def rename(self, dentry: int, name: str, parent: int) -> int:
        """``debugfs_rename``, ``debugfs_change_name``; 0 or -errno."""
        entry = self.entries.get(dentry)
        if entry is None:
            return -ENOENT
        if self.name(dentry) == name and entry.parent == parent:
            return 0
        above = self.entries[parent].path if parent else ROOT
        fs = self._kernel.part(FileSystem)
        node, directory = fs.find_link(entry.path), fs.find(above)
        if node is None or not isinstance(directory, MemoryDirectory):
            return -ENOENT
        if directory.lookup(name) is not None:
            return -EEXIST
        old, new = entry.path, f"{above}/{name}"
        fs.discard(old)
        directory.add(name, node)
        self.entries[dentry] = Entry(new, parent)
        for known, other in list(self.entries.items()):
            if other.path.startswith(f"{old}/"):
                self.entries[known] = Entry(new + other.path.removeprefix(old), other.parent)
        return 0
