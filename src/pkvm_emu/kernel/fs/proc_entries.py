"""Modules' files below ``/proc`` (``fs/proc/{generic,inode}.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import EIO, ENOENT
from pkvm_emu.abi.file_structs import PROC_OPERATIONS
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.guest_file import GuestFile, Operations
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.module_files import ModuleFiles
from pkvm_emu.kernel.fs.node import Node, Symlink
from pkvm_emu.kernel.fs.seq import SeqFiles
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

ROOT = "/proc"
#: An opaque ``struct proc_dir_entry``.
_ENTRY_BYTES = 192
_PLACE = "fs/proc/generic.c"


class Source(NamedTuple):
    """Where a file's contents come from.

    Attributes:
        operations: ``struct proc_ops``; 0: one of the next two.
        sequence: ``struct seq_operations`` (``proc_create_seq``), and ``state`` bytes of private memory for each open.
        show: the one function of ``proc_create_single``.
        data: what ``pde_data`` gives.
    """

    operations: int = 0
    sequence: int = 0
    state: int = 0
    show: int = 0
    data: int = 0


class Entry(NamedTuple):
    """A ``struct proc_dir_entry``: its path."""

    path: str


class ProcFile(GuestFile):
    """A file with a module's ``proc_ops``, or one that procfs reads by a module's ``show``."""

    def __init__(self, kernel: Kernel, entry: int, mode: int, source: Source) -> None:
        super().__init__(kernel, mode)
        self._entry = entry
        self._source = source

    @property
    def source(self) -> Source:
        """Where its contents come from."""
        return self._source

    @property
    def size(self) -> int:
        return self._kernel.part(ProcEntries).sizes.get(self._entry, 0)

    def operations(self, handle: OpenFile) -> Operations | int:
        if self.alive(handle):
            return -ENOENT
        address = self._source.operations or self._kernel.symbols.resolve("pkvm_emu_proc_seq_ops")
        return Operations(address, PROC_OPERATIONS)

    def prepare(self, handle: OpenFile, inode: int, file: int) -> None:
        memory, rows = self._kernel.memory, self.structs
        memory.write_u64(inode + rows.inode.i_private, self._source.data)

    def _call_open(self, handle: OpenFile) -> int:
        if self._source.operations:
            return super()._call_open(handle)
        files, file = self._kernel.part(SeqFiles), self.file_of(handle)
        if self._source.show:
            result = files.open_single(file, self._source.show, self._source.data)
        else:
            result = files.open_private(file, self._source.sequence, self._source.state)
        if not result:
            handle.data["opened"] = True
        return result

    def alive(self, handle: OpenFile) -> int:
        return 0 if self._entry in self._kernel.part(ProcEntries).entries else EIO

    def finish(self, handle: OpenFile) -> None:
        if self._source.operations:
            super().finish(handle)
        elif handle.data.pop("opened", False):
            self._kernel.part(SeqFiles).release(self.file_of(handle), single=bool(self._source.show))


@kernel_part
class ProcEntries(State):
    """The entries that modules hold, and sizes that they set."""

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.proc")
        self._kernel = kernel
        self.entries: StateDict[int, Entry] = StateDict(journal, "kernel.proc.entries")
        self.sizes: StateDict[int, int] = StateDict(journal, "kernel.proc.sizes")

    def _above(self, name: str, parent: int) -> tuple[str, str] | None:
        """Directory and last part of a name, which may have directories in it; None where there is no such directory."""
        base = ROOT if not parent else self.entries[parent].path if parent in self.entries else None
        if base is None:
            return None
        head, _, last = name.rpartition("/")
        place = f"{base}/{head}" if head else base
        return (place, last) if isinstance(self._kernel.part(FileSystem).find(place), MemoryDirectory) else None

    def _hang(self, name: str, parent: int, node: Node, entry: int) -> int:
        found = self._above(name, parent)
        if found is None or not found[1] or len(found[1]) > 255:
            warn(self._kernel, _PLACE, f"name '{name}'")
            return 0
        path = "/".join(found)
        directory = self._kernel.part(FileSystem).find(found[0])
        assert isinstance(directory, MemoryDirectory)
        if directory.lookup(found[1]) is not None:
            shown = found[0].removeprefix(ROOT).lstrip("/") or "/proc"
            warn(self._kernel, _PLACE, f"proc_dir_entry '{shown}/{found[1]}' already registered")
            return 0
        directory.add(found[1], node)
        self.entries[entry] = Entry(path)
        return entry

    def _allocate(self) -> int:
        zero = line_facts(self._kernel.generation.kernel).gfp_zero
        return self._kernel.part(Slab).kmalloc(_ENTRY_BYTES, zero) or 0

    def _made(self, name: str, parent: int, entry: int, node: Node) -> int:
        if not self._hang(name, parent, node, entry):
            self._kernel.part(Slab).kfree(entry)
            return 0
        if not isinstance(node, MemoryDirectory):
            self._kernel.part(ModuleFiles).note(self.entries[entry].path)
        return entry

    def file(self, name: str, mode: int, parent: int, source: Source) -> int:
        """``proc_create_data`` and its kin; the ``struct proc_dir_entry``, or 0."""
        entry = self._allocate()
        return (
            self._made(name, parent, entry, ProcFile(self._kernel, entry, mode & 0o777 or 0o444, source))
            if entry
            else 0
        )

    def directory(self, name: str, mode: int, parent: int) -> int:
        """``proc_mkdir``; the entry, or 0."""
        entry = self._allocate()
        node = MemoryDirectory(self._kernel.machine.journal, False, mode & 0o777 or 0o555, ENOENT)
        return self._made(name, parent, entry, node) if entry else 0

    def link(self, name: str, parent: int, target: str) -> int:
        """``proc_symlink``; the entry, or 0."""
        entry = self._allocate()
        return self._made(name, parent, entry, Symlink(target)) if entry else 0

    # Removing

    def find(self, name: str, parent: int) -> int:
        """The entry of a name; 0 without."""
        found = self._above(name, parent)
        path = "/".join(found) if found is not None else ""
        return next((address for address, entry in self.entries.items() if entry.path == path), 0)

    def remove(self, entry: int) -> None:
        """``proc_remove``: the entry with all below it. Files that are open are released now, and give -EIO."""
        known = self.entries.get(entry)
        if known is None:
            return
        fs = self._kernel.part(FileSystem)
        for address, other in list(self.entries.items()):
            if other.path.startswith(f"{known.path}/"):
                self._close(address)
        self._close(entry)
        fs.discard(known.path)
        self._kernel.part(ModuleFiles).forget(known.path)

    def _close(self, entry: int) -> None:
        fs = self._kernel.part(FileSystem)
        node = fs.find_link(self.entries[entry].path)
        del self.entries[entry]
        self.sizes.pop(entry, None)
        for handle in list(fs.open_files.values()):
            if handle.node is node and isinstance(node, ProcFile):
                node.finish(handle)
        self._kernel.part(Slab).kfree(entry, "remove_proc_entry")

    def remove_named(self, name: str, parent: int, subtree: bool) -> int:
        """``remove_proc_entry`` and ``remove_proc_subtree``; 0, or -ENOENT after a warning."""
        entry = self.find(name, parent)
        if not entry:
            warn(self._kernel, _PLACE, f"name '{name}'")
            return -ENOENT
        path = self.entries[entry].path
        inside = [other.path for other in self.entries.values() if other.path.startswith(f"{path}/")]
        if inside and not subtree:
            above, _, last = path.removeprefix(f"{ROOT}/").rpartition("/")
            text = f"removing non-empty directory '{above or '/proc'}/{last}', leaking at least '{inside[0].rpartition('/')[2]}'"
            warn(self._kernel, _PLACE, f"remove_proc_entry: {text}")
        self.remove(entry)
        return 0
