"""Files, groups and links of sysfs (``fs/sysfs/{file,group,symlink}.c``)."""

from __future__ import annotations

from posixpath import relpath
from typing import Any

from pkvm_emu.abi.errno import EEXIST, ENOENT
from pkvm_emu.abi.file_structs import Attribute
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.fs.node import Symlink
from pkvm_emu.kernel.fs.sysfs_attributes import (
    AttributeFile,
    attribute_name,
    create_file,
    create_group,
    create_groups,
    pointers,
    remove_file,
    remove_group,
    remove_groups,
)
from pkvm_emu.kernel.guest_access import load_string, load_u64, store
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, U16, Ptr, VarArgs

_PLACE = "fs/sysfs/file.c"


# Files


@kernel_symbol("sysfs_create_file_ns", runs_guest=True)
def sysfs_create_file(kernel: Kernel, kobject: Ptr, attribute: Ptr, namespace: Ptr) -> int:
    """Make a file; 0, -EEXIST, -EINVAL (the object is not in sysfs)."""
    return create_file(kernel, kobject, attribute)


@kernel_symbol("sysfs_create_files", runs_guest=True)
def sysfs_create_files(kernel: Kernel, kobject: Ptr, attributes: Ptr) -> int:
    """All files of an array, or none."""
    done: list[int] = []
    for attribute in pointers(kernel, attributes):
        result = create_file(kernel, kobject, attribute)
        if result:
            for made in done:
                remove_file(kernel, kobject, attribute_name(kernel, made))
            return result
        done.append(attribute)
    return 0


@kernel_symbol("sysfs_remove_file_ns", runs_guest=True)
def sysfs_remove_file(kernel: Kernel, kobject: Ptr, attribute: Ptr, namespace: Ptr) -> None:
    """Remove a file; open ones give -ENODEV."""
    remove_file(kernel, kobject, attribute_name(kernel, attribute))


@kernel_symbol("sysfs_remove_file_self", runs_guest=True)
def sysfs_remove_file_self(kernel: Kernel, kobject: Ptr, attribute: Ptr) -> int:
    """The same from its own ``store``; whether it was there."""
    return remove_file(kernel, kobject, attribute_name(kernel, attribute))


@kernel_symbol("sysfs_remove_files", runs_guest=True)
def sysfs_remove_files(kernel: Kernel, kobject: Ptr, attributes: Ptr) -> None:
    """Remove the files of an array."""
    for attribute in pointers(kernel, attributes):
        remove_file(kernel, kobject, attribute_name(kernel, attribute))


@kernel_symbol("sysfs_chmod_file", runs_guest=True)
def sysfs_chmod_file(kernel: Kernel, kobject: Ptr, attribute: Ptr, mode: U16) -> int:
    """Change permission bits; 0 or -ENOENT."""
    path = kernel.part(Kobjects).path(kobject)
    directory = kernel.part(Kobjects).directory(path) if path else None
    name = attribute_name(kernel, attribute)
    node = directory.lookup(name) if directory is not None else None
    if directory is None or not isinstance(node, AttributeFile):
        return -ENOENT
    directory.add(name, type(node)(kernel, kobject, attribute, mode))
    return 0


@kernel_symbol("sysfs_create_bin_file", runs_guest=True)
def sysfs_create_bin_file(kernel: Kernel, kobject: Ptr, attribute: Ptr) -> int:
    """Make a binary file; 0 or -errno."""
    return create_file(kernel, kobject, attribute, binary=True)


@kernel_symbol("sysfs_remove_bin_file", runs_guest=True)
def sysfs_remove_bin_file(kernel: Kernel, kobject: Ptr, attribute: Ptr) -> None:
    """Remove it."""
    remove_file(kernel, kobject, attribute_name(kernel, attribute))


@kernel_symbol("sysfs_notify", runs_guest=True)
def sysfs_notify(kernel: Kernel, kobject: Ptr, group: Ptr, name: Ptr) -> None:
    """Wake those that poll a file: they see ``POLLERR | POLLPRI`` until they read it again."""
    part = kernel.part(Kobjects)
    path = part.path(kobject)
    directory = part.directory(f"{path}/{text(kernel, group)}" if group else path) if path else None
    node = directory.lookup(text(kernel, name)) if directory is not None and name else None
    if isinstance(node, AttributeFile):
        node.events += 1


# Groups


@kernel_symbol("sysfs_create_group", runs_guest=True)
def sysfs_create_group(kernel: Kernel, kobject: Ptr, group: Ptr) -> int:
    """All files of a group that are visible; 0 or -errno."""
    return create_group(kernel, kobject, group)


@kernel_symbol("sysfs_update_group", runs_guest=True)
def sysfs_update_group(kernel: Kernel, kobject: Ptr, group: Ptr) -> int:
    """The same for a group that is there: visibility is asked again."""
    return create_group(kernel, kobject, group, update=True)


@kernel_symbol("sysfs_create_groups", runs_guest=True)
def sysfs_create_groups(kernel: Kernel, kobject: Ptr, groups: Ptr) -> int:
    """All groups of an array, or none."""
    return create_groups(kernel, kobject, groups)


@kernel_symbol("sysfs_update_groups", runs_guest=True)
def sysfs_update_groups(kernel: Kernel, kobject: Ptr, groups: Ptr) -> int:
    """Update the groups of an array."""
    for group in pointers(kernel, groups):
        result = create_group(kernel, kobject, group, update=True)
        if result:
            return result
    return 0


@kernel_symbol("sysfs_remove_group", runs_guest=True)
def sysfs_remove_group(kernel: Kernel, kobject: Ptr, group: Ptr) -> None:
    """Remove a group; one that is not there is warned about."""
    remove_group(kernel, kobject, group)


@kernel_symbol("sysfs_remove_groups", runs_guest=True)
def sysfs_remove_groups(kernel: Kernel, kobject: Ptr, groups: Ptr) -> None:
    """Remove the groups of an array."""
    remove_groups(kernel, kobject, groups)


@kernel_symbol("sysfs_merge_group", runs_guest=True)
def sysfs_merge_group(kernel: Kernel, kobject: Ptr, group: Ptr) -> int:
    """Add the files of a group to a directory that is there; 0 or -errno."""
    name = _group_name(kernel, group)
    for attribute in pointers(kernel, load_u64(kernel, group + Attribute.GROUP_ATTRS)):
        result = create_file(kernel, kobject, attribute, group=name)
        if result:
            return result
    return 0


@kernel_symbol("sysfs_unmerge_group", runs_guest=True)
def sysfs_unmerge_group(kernel: Kernel, kobject: Ptr, group: Ptr) -> None:
    """Take them out again."""
    for attribute in pointers(kernel, load_u64(kernel, group + Attribute.GROUP_ATTRS)):
        remove_file(kernel, kobject, attribute_name(kernel, attribute), _group_name(kernel, group))


def _group_name(kernel: Kernel, group: int) -> str:
    name = load_u64(kernel, group + Attribute.GROUP_NAME)
    return text(kernel, name) if name else ""


@kernel_symbol("sysfs_add_file_to_group", runs_guest=True)
def sysfs_add_file_to_group(kernel: Kernel, kobject: Ptr, attribute: Ptr, group: Ptr) -> int:
    """One file in a group's directory; 0 or -errno."""
    return create_file(kernel, kobject, attribute, group=text(kernel, group) if group else "")


@kernel_symbol("sysfs_remove_file_from_group", runs_guest=True)
def sysfs_remove_file_from_group(kernel: Kernel, kobject: Ptr, attribute: Ptr, group: Ptr) -> None:
    """Remove it."""
    remove_file(kernel, kobject, attribute_name(kernel, attribute), text(kernel, group) if group else "")


# Links


def _link(kernel: Kernel, kobject: int, target: int, name: int, loud: bool) -> int:
    part = kernel.part(Kobjects)
    place, goal = part.path(kobject) if kobject else "/sys", part.path(target)
    directory = part.directory(place) if place else None
    if place is None or directory is None:
        return -ENOENT
    if goal is None:
        return -ENOENT
    label = text(kernel, name)
    if directory.lookup(label) is not None:
        if loud:
            kernel.log.write(f"sysfs: cannot create duplicate filename '{place.removeprefix('/sys')}/{label}'", level=4)
        return -EEXIST
    directory.add(label, Symlink(relpath(goal, place)))
    return 0


@kernel_symbol("sysfs_create_link", runs_guest=True)
def sysfs_create_link(kernel: Kernel, kobject: Ptr, target: Ptr, name: Ptr) -> int:
    """A link to another object's directory; 0, -EEXIST, -ENOENT."""
    return _link(kernel, kobject, target, name, loud=True)


@kernel_symbol("sysfs_create_link_nowarn", runs_guest=True)
def sysfs_create_link_nowarn(kernel: Kernel, kobject: Ptr, target: Ptr, name: Ptr) -> int:
    """The same without a word in the log."""
    return _link(kernel, kobject, target, name, loud=False)


@kernel_symbol("sysfs_remove_link", runs_guest=True)
def sysfs_remove_link(kernel: Kernel, kobject: Ptr, name: Ptr) -> None:
    """Remove it."""
    path = kernel.part(Kobjects).path(kobject) if kobject else "/sys"
    directory = kernel.part(Kobjects).directory(path) if path else None
    if directory is not None:
        directory.discard(text(kernel, name))


# Printing


def _emit(kernel: Kernel, buf: int, at: int, fmt: int, args: Any) -> int:
    data = kernel.format(load_string(kernel, fmt), args).encode("latin-1")[: PAGE_SIZE - at - 1]
    store(kernel, buf + at, data + b"\0")
    return len(data)


@kernel_symbol("sysfs_emit", runs_guest=True)
def sysfs_emit(kernel: Kernel, buf: Ptr, fmt: Ptr, args: VarArgs) -> int:
    """Format into the page of a ``show`` function; a buffer that is no page is warned about, and 0."""
    if not buf or buf % PAGE_SIZE:
        warn(kernel, _PLACE, f"invalid sysfs_emit: buf:{buf:016x}")
        return 0
    return _emit(kernel, buf, 0, fmt, args)


@kernel_symbol("sysfs_emit_at", runs_guest=True)
def sysfs_emit_at(kernel: Kernel, buf: Ptr, at: S32, fmt: Ptr, args: VarArgs) -> int:
    """The same at an offset."""
    if not buf or buf % PAGE_SIZE or not 0 <= at < PAGE_SIZE:
        warn(kernel, _PLACE, f"invalid sysfs_emit_at: buf:{buf:016x} at:{at}")
        return 0
    return _emit(kernel, buf, at, fmt, args)
