"""debugfs: directories and files with a module's operations (``fs/debugfs/inode.c``)."""

from __future__ import annotations

from pkvm_emu.abi.errno import EIO, ENOENT, ENOMEM
from pkvm_emu.abi.file_structs import file_structs
from pkvm_emu.kernel.fs.debugfs import Debugfs
from pkvm_emu.kernel.guest_access import load_string, load_u64, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import U16, U64, CStr, Ptr, VarArgs


def text(kernel: Kernel, address: int) -> str:
    """A guest string."""
    return load_string(kernel, address).decode("latin-1")


@kernel_symbol("debugfs_initialized")
def debugfs_initialized(kernel: Kernel) -> int:
    """True: debugfs is there."""
    return 1


@kernel_symbol("debugfs_create_dir", runs_guest=True)
def debugfs_create_dir(kernel: Kernel, name: Ptr, parent: Ptr) -> int:
    """Make a directory (``parent`` NULL: at the top); its dentry, or ERR_PTR(-EEXIST), (-ENOMEM), or a bad parent as it is."""
    return kernel.part(Debugfs).directory(text(kernel, name), parent)


@kernel_symbol("debugfs_create_file", "debugfs_create_file_unsafe", "debugfs_create_file_full", runs_guest=True)
def debugfs_create_file(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, data: Ptr, operations: Ptr) -> int:
    """Make a file with a module's operations; ``data`` becomes ``inode->i_private``. Its dentry or an ERR_PTR."""
    return kernel.part(Debugfs).file(text(kernel, name), mode, parent, data, operations)


@kernel_symbol("debugfs_create_file_size", runs_guest=True)
def debugfs_create_file_size(
    kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, data: Ptr, operations: Ptr, size: U64
) -> int:
    """The same with the size that ``ls`` shows."""
    return kernel.part(Debugfs).file(text(kernel, name), mode, parent, data, operations, size)


@kernel_symbol("debugfs_create_symlink", runs_guest=True)
def debugfs_create_symlink(kernel: Kernel, name: Ptr, parent: Ptr, target: Ptr) -> int:
    """Make a symbolic link."""
    return kernel.part(Debugfs).link(text(kernel, name), parent, text(kernel, target))


@kernel_symbol("debugfs_remove", "debugfs_remove_recursive", runs_guest=True)
def debugfs_remove(kernel: Kernel, dentry: Ptr) -> None:
    """Remove a file, or a directory with all that is in it; NULL and error pointers are ignored."""
    kernel.part(Debugfs).remove(dentry)


@kernel_symbol("debugfs_lookup", runs_guest=True)
def debugfs_lookup(kernel: Kernel, name: Ptr, parent: Ptr) -> int:
    """The dentry of a name, or NULL."""
    return kernel.part(Debugfs).find(text(kernel, name), parent)


@kernel_symbol("debugfs_lookup_and_remove", runs_guest=True)
def debugfs_lookup_and_remove(kernel: Kernel, name: Ptr, parent: Ptr) -> None:
    """Remove what has a name."""
    part = kernel.part(Debugfs)
    part.remove(part.find(text(kernel, name), parent))


@kernel_symbol("debugfs_rename", runs_guest=True)
def debugfs_rename(kernel: Kernel, old_parent: Ptr, dentry: Ptr, new_parent: Ptr, name: Ptr) -> int:
    """Move a file; its dentry, or ERR_PTR(-EEXIST), (-ENOENT)."""
    return kernel.part(Debugfs).rename(dentry, text(kernel, name), new_parent) or dentry


@kernel_symbol("debugfs_change_name", runs_guest=True)
def debugfs_change_name(kernel: Kernel, dentry: Ptr, fmt: CStr, args: VarArgs) -> int:
    """Rename a file in its directory; 0 or -errno."""
    part = kernel.part(Debugfs)
    entry = part.entries.get(dentry)
    return -ENOENT if entry is None else part.rename(dentry, kernel.format(fmt or "", args), entry.parent)


@kernel_symbol("debugfs_file_get")
def debugfs_file_get(kernel: Kernel, dentry: Ptr) -> int:
    """Keep a file from being removed; -EIO where it is removed already."""
    return 0 if dentry in kernel.part(Debugfs).entries or _is_open(kernel, dentry) else -EIO


def _is_open(kernel: Kernel, dentry: int) -> bool:
    """``file->f_path.dentry`` is a dentry of its own here; alive as long as its file's entry is."""
    from pkvm_emu.kernel.fs.debugfs import DebugFile
    from pkvm_emu.kernel.fs.filesystem import FileSystem

    for handle in kernel.part(FileSystem).open_files.values():
        if handle.data.get("dentry") == dentry and isinstance(handle.node, DebugFile):
            return not handle.node.alive(handle)
    return False


@kernel_symbol("debugfs_file_put")
def debugfs_file_put(kernel: Kernel, dentry: Ptr) -> None:
    """Let it go again."""


@kernel_symbol("debugfs_create_devm_seqfile", runs_guest=True)
def debugfs_create_devm_seqfile(kernel: Kernel, device: Ptr, name: Ptr, parent: Ptr, show: Ptr) -> int:
    """A file that ``show(seq, data)`` makes, with the device in ``seq->private``; 0 or -errno."""
    from pkvm_emu.kernel.slab import Slab

    entry = kernel.part(Slab).kmalloc(16)
    if entry is None:
        return -ENOMEM
    store_uint(kernel, entry, show, 8)
    store_uint(kernel, entry + 8, device, 8)
    operations = kernel.symbols.resolve("pkvm_emu_devm_seqfile_ops")
    return min(kernel.part(Debugfs).file(text(kernel, name), 0o444, parent, entry, operations), 0)


@kernel_symbol("pkvm_emu_devm_seqfile_open", runs_guest=True)
def devm_seqfile_open(kernel: Kernel, inode: Ptr, file: Ptr) -> int:
    """Open such a file: {show, device} is behind ``i_private``."""
    from pkvm_emu.kernel.fs.seq import SeqFiles

    rows = file_structs(kernel.generation.kernel)
    entry = load_u64(kernel, inode + rows.inode.i_private)
    # The kernel gives show() the device in seq->private.
    return kernel.part(SeqFiles).open_single(file, load_u64(kernel, entry), load_u64(kernel, entry + 8))
