"""procfs entries of modules (``fs/proc/generic.c``)."""

from __future__ import annotations

import struct

from pkvm_emu.abi.file_structs import PROC_OPERATIONS, file_structs
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.fs.proc_entries import ProcEntries, Source
from pkvm_emu.kernel.guest_access import load_u64
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.machine.calling import S64, U16, U32, Ptr

_PROC_OPS_BYTES = 96


@kernel_variable("pkvm_emu_proc_seq_ops", _PROC_OPS_BYTES)
def proc_seq_ops(kernel: Kernel) -> bytes:
    """The ``struct proc_ops`` of files that the kernel makes of records."""
    table = bytearray(_PROC_OPS_BYTES)
    for member, symbol in (("read", "seq_read"), ("llseek", "seq_lseek")):
        struct.pack_into("<Q", table, PROC_OPERATIONS[member], kernel.symbols.resolve(symbol))
    return bytes(table)


@kernel_symbol("proc_create", runs_guest=True)
def proc_create(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, operations: Ptr) -> int:
    """Make a file; its ``struct proc_dir_entry``, or NULL (the name is taken, no such directory)."""
    return kernel.part(ProcEntries).file(text(kernel, name), mode, parent, Source(operations))


@kernel_symbol("proc_create_data", runs_guest=True)
def proc_create_data(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, operations: Ptr, data: Ptr) -> int:
    """The same with data for ``pde_data``."""
    return kernel.part(ProcEntries).file(text(kernel, name), mode, parent, Source(operations, data=data))


@kernel_symbol("proc_create_seq_private", runs_guest=True)
def proc_create_seq_private(
    kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, sequence: Ptr, state: U32, data: Ptr
) -> int:
    """A file of records, with ``state`` private bytes an open."""
    source = Source(sequence=sequence, state=state, data=data)
    return kernel.part(ProcEntries).file(text(kernel, name), mode, parent, source)


@kernel_symbol("proc_create_single_data", runs_guest=True)
def proc_create_single_data(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr, show: Ptr, data: Ptr) -> int:
    """A file of one record."""
    return kernel.part(ProcEntries).file(text(kernel, name), mode, parent, Source(show=show, data=data))


@kernel_symbol("proc_mkdir", runs_guest=True)
def proc_mkdir(kernel: Kernel, name: Ptr, parent: Ptr) -> int:
    """Make a directory; its entry, or NULL."""
    return kernel.part(ProcEntries).directory(text(kernel, name), 0, parent)


@kernel_symbol("proc_mkdir_mode", "proc_mkdir_data", "_proc_mkdir", runs_guest=True)
def proc_mkdir_mode(kernel: Kernel, name: Ptr, mode: U16, parent: Ptr) -> int:
    """The same with permission bits."""
    return kernel.part(ProcEntries).directory(text(kernel, name), mode, parent)


@kernel_symbol("proc_symlink", runs_guest=True)
def proc_symlink(kernel: Kernel, name: Ptr, parent: Ptr, target: Ptr) -> int:
    """Make a symbolic link; its entry, or NULL."""
    return kernel.part(ProcEntries).link(text(kernel, name), parent, text(kernel, target))


@kernel_symbol("proc_set_size")
def proc_set_size(kernel: Kernel, entry: Ptr, size: S64) -> None:
    """The size that ``ls`` shows."""
    kernel.part(ProcEntries).sizes[entry] = size


@kernel_symbol("proc_set_user")
def proc_set_user(kernel: Kernel, entry: Ptr, uid: U32, gid: U32) -> None:
    """The owner: everything here is done as root, so it makes no difference."""


@kernel_symbol("pde_data", "PDE_DATA", runs_guest=True)
def pde_data(kernel: Kernel, inode: Ptr) -> int:
    """The data that the entry was made with."""
    return load_u64(kernel, inode + file_structs(kernel.generation.kernel).inode.i_private)


@kernel_symbol("proc_remove", runs_guest=True)
def proc_remove(kernel: Kernel, entry: Ptr) -> None:
    """Remove an entry with all below it; NULL is ignored."""
    kernel.part(ProcEntries).remove(entry)


@kernel_symbol("remove_proc_entry", runs_guest=True)
def remove_proc_entry(kernel: Kernel, name: Ptr, parent: Ptr) -> None:
    """Remove by name; what is not there, and a directory with something in it, is warned about."""
    kernel.part(ProcEntries).remove_named(text(kernel, name), parent, subtree=False)


@kernel_symbol("remove_proc_subtree", runs_guest=True)
def remove_proc_subtree(kernel: Kernel, name: Ptr, parent: Ptr) -> int:
    """Remove with all below; 0 or -ENOENT."""
    return kernel.part(ProcEntries).remove_named(text(kernel, name), parent, subtree=True)
