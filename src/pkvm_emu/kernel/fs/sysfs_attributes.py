"""Attributes of sysfs that a module's functions show and store (``fs/sysfs/{file,group}.c``, ``fs/kernfs/file.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EEXIST, EINVAL, EIO, ENODEV, ENOMEM, to_signed
from pkvm_emu.abi.file_structs import Attribute, Kobject, file_structs
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.module_files import ModuleFiles
from pkvm_emu.kernel.fs.node import (
    ALWAYS_READY,
    EACCES,
    O_ACCMODE,
    O_RDONLY,
    O_WRONLY,
    POLLERR,
    POLLPRI,
    File,
)
from pkvm_emu.kernel.fs.result import as_user_sees
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.layout import PAGE_SIZE
from pkvm_emu.machine.state import State

if TYPE_CHECKING:
    from pkvm_emu.kernel.fs.open_file import OpenFile
    from pkvm_emu.kernel.kernel import Kernel

_GROUP_MODES = 0o10000 | 0o664
_PLACE = "fs/sysfs/group.c"
_NAME_LIMIT = 4096


class AttributeFile(File, State):
    """A file with one value: a read is one call of ``show`` into a page, a write one call of ``store``.

    Args:
        kernel: where they run.
        kobject: whose attribute it is.
        attribute: kernel VA of the ``struct attribute``.
        mode: permission bits, which bind root too.

    Attributes:
        events: how often ``sysfs_notify`` was called.
        removed: the module took it away.
    """

    strict_mode = True
    moves_offset = False

    def __init__(self, kernel: Kernel, kobject: int, attribute: int, mode: int) -> None:
        State.__init__(self, kernel.machine.journal)
        self._kernel = kernel
        self._kobject = kobject
        self._attribute = attribute
        self.mode = mode & 0o777
        self.events = 0
        self.removed = False

    @property
    def size(self) -> int:
        return PAGE_SIZE

    @property
    def attribute(self) -> int:
        """Kernel VA of the ``struct attribute``."""
        return self._attribute

    def functions(self) -> tuple[int, int]:
        """Addresses of show and store; 0 where there is none."""
        memory = self._kernel.memory
        if self._is_direct:
            at = self._attribute
            return memory.read_u64(at + Attribute.SHOW), memory.read_u64(at + Attribute.STORE)
        ktype = memory.read_u64(self._kobject + Kobject.KTYPE)
        operations = memory.read_u64(ktype + Kobject.TYPE_OPS) if ktype else 0
        return (memory.read_u64(operations), memory.read_u64(operations + 8)) if operations else (0, 0)

    @property
    def _subject(self) -> tuple[int, ...]:
        """What show and store get before the buffer."""
        form = self._kernel.part(Kobjects).direct.get(self._kobject, "object")
        subjects = {"driver": (self._kobject,), "module": (self._attribute, self._kobject)}
        return subjects.get(form, (self._kobject, self._attribute))

    @property
    def _is_direct(self) -> bool:
        return self._kobject in self._kernel.part(Kobjects).direct

    def open(self, handle: OpenFile) -> int:
        if self.removed:
            return -ENODEV
        show, store = self.functions()
        access = handle.flags & O_ACCMODE
        # Devices and classes have a function for every attribute, which answers -EIO where the attribute has none.
        if not self._is_direct and ((access != O_WRONLY and not show) or (access != O_RDONLY and not store)):
            return -EACCES
        handle.data["events"] = self.events
        return 0

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        if self.removed:
            return -ENODEV
        if offset == 0 or "text" not in handle.data:
            handle.data["events"] = self.events
            shown = self._show()
            if isinstance(shown, int):
                return shown
            handle.data["text"] = shown
        text: bytes = handle.data["text"]
        return text[offset : offset + size]

    def _show(self) -> bytes | int:
        kernel = self._kernel
        page = kernel.pages.alloc_pages(0, zero=True)
        if page is None:
            return -ENOMEM
        try:
            buffer = kernel.memory.linear_va(page)
            function = self.functions()[0]
            if not function:
                return -EIO
            count = to_signed(kernel.call(function, *self._subject, buffer), 64)
            if count < 0:
                return as_user_sees(count)
            if count >= PAGE_SIZE:
                kernel.log.write(f"fill_read_buffer: {kernel.describe(function)} returned bad count", level=4)
                count = PAGE_SIZE - 1
            return kernel.memory.read(buffer, count)
        finally:
            kernel.pages.free_pages(page, 0)

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        if self.removed:
            return -ENODEV
        data = data[: PAGE_SIZE - 1]
        if not data:
            return 0
        if not self.functions()[1]:
            return -EIO
        kernel = self._kernel
        page = kernel.pages.alloc_pages(0, zero=True)
        if page is None:
            return -ENOMEM
        try:
            buffer = kernel.memory.linear_va(page)
            kernel.memory.write(buffer, data)
            result = kernel.call(self.functions()[1], *self._subject, buffer, len(data))
            return as_user_sees(to_signed(result, 64))
        finally:
            kernel.pages.free_pages(page, 0)

    def poll(self, handle: OpenFile) -> int:
        changed = self.removed or handle.data.get("events") != self.events
        return ALWAYS_READY | (POLLERR | POLLPRI if changed else 0)


class BinaryFile(AttributeFile):
    """A binary attribute: reads and writes go to its own functions with offset and length."""

    moves_offset = False

    def _field(self, offset: int) -> int:
        return self._kernel.memory.read_u64(self._attribute + offset)

    @property
    def size(self) -> int:
        return self._field(Attribute.BIN_SIZE)

    def functions(self) -> tuple[int, int]:
        return self._field(Attribute.BIN_READ), self._field(Attribute.BIN_WRITE)

    def read(self, handle: OpenFile, offset: int, size: int) -> bytes | int:
        limit = self.size
        count = min(size, PAGE_SIZE, max(limit - offset, 0) if limit else size)
        if self.removed or not count:
            return -ENODEV if self.removed else b""
        return self._call(self.functions()[0], offset, count, None)

    def write(self, handle: OpenFile, offset: int, data: bytes) -> int:
        limit = self.size
        count = min(len(data), PAGE_SIZE, max(limit - offset, 0) if limit else len(data))
        if self.removed or not count:
            return -ENODEV if self.removed else 0
        result = self._call(self.functions()[1], offset, count, data[:count])
        return result if isinstance(result, int) else len(result)

    def _call(self, function: int, offset: int, count: int, data: bytes | None) -> bytes | int:
        kernel = self._kernel
        page = kernel.pages.alloc_pages(0, zero=True)
        if page is None:
            return -ENOMEM
        try:
            if not function:
                return -EIO
            buffer = kernel.memory.linear_va(page)
            if data is not None:
                kernel.memory.write(buffer, data)
            result = kernel.call(function, 0, self._kobject, self._attribute, buffer, offset, count)
            done = as_user_sees(to_signed(result, 64))
            if done < 0 or data is not None:
                return done
            return kernel.memory.read(buffer, min(done, PAGE_SIZE))
        finally:
            kernel.pages.free_pages(page, 0)

    def mmap_function(self) -> int:
        """Address of its ``mmap``; 0 without."""
        return self._field(file_structs(self._kernel.generation.kernel).bin_attribute_mmap)


# Making and removing


def attribute_name(kernel: Kernel, attribute: int) -> str:
    """``attr->name``"""
    return kernel.read_cstr(kernel.memory.read_u64(attribute + Attribute.NAME), _NAME_LIMIT).decode("latin-1")


def attribute_mode(kernel: Kernel, attribute: int) -> int:
    """``attr->mode``"""
    return int.from_bytes(kernel.memory.read(attribute + Attribute.MODE, 2), "little")


def create_file(
    kernel: Kernel, kobject: int, attribute: int, mode: int | None = None, group: str = "", binary: bool = False
) -> int:
    """Make a file of an attribute in the directory of a kobject (or of a group in it); 0 or -errno."""
    part = kernel.part(Kobjects)
    path = part.path(kobject)
    if path is None or not attribute:
        warn(kernel, "fs/sysfs/file.c")
        return -EINVAL
    directory = part.directory(f"{path}/{group}" if group else path)
    name = attribute_name(kernel, attribute)
    if directory is None:
        return -2
    full = f"{path}/{group}/{name}" if group else f"{path}/{name}"
    if directory.lookup(name) is not None or kernel.part(FileSystem).find(full) is not None:
        kernel.log.write(f"sysfs: cannot create duplicate filename '{full.removeprefix('/sys')}'", level=4)
        return -EEXIST
    kind = BinaryFile if binary else AttributeFile
    chosen = attribute_mode(kernel, attribute) if mode is None else mode
    directory.add(name, kind(kernel, kobject, attribute, chosen))
    kernel.part(ModuleFiles).note(full)
    return 0


def remove_file(kernel: Kernel, kobject: int, name: str, group: str = "") -> bool:
    """Remove a file; whether it was there. Open ones give -ENODEV from now on."""
    part = kernel.part(Kobjects)
    path = part.path(kobject)
    place = f"{path}/{group}" if group else path
    directory = part.directory(place) if place else None
    node = directory.lookup(name) if directory is not None else None
    if directory is None or node is None:
        return False
    if isinstance(node, AttributeFile):
        node.removed = True
    directory.discard(name)
    kernel.part(ModuleFiles).forget(f"{place}/{name}")
    return True


def pointers(kernel: Kernel, array: int) -> list[int]:
    """A NULL-terminated array of pointers; nothing for NULL."""
    found: list[int] = []
    while array:
        value = kernel.memory.read_u64(array + 8 * len(found))
        if not value:
            break
        found.append(value)
    return found


def create_group(kernel: Kernel, kobject: int, group: int, update: bool = False) -> int:
    """``sysfs_create_group``: all files of an ``attribute_group`` that are visible, or none; 0 or -errno."""
    part, memory = kernel.part(Kobjects), kernel.memory
    path = part.path(kobject)
    if path is None:
        warn(kernel, _PLACE)
        return -EINVAL
    attrs, bins = (
        pointers(kernel, memory.read_u64(group + at)) for at in (Attribute.GROUP_ATTRS, Attribute.GROUP_BINS)
    )
    name_at = memory.read_u64(group + Attribute.GROUP_NAME)
    name = kernel.read_cstr(name_at, _NAME_LIMIT).decode("latin-1") if name_at else ""
    if not memory.read_u64(group + Attribute.GROUP_ATTRS) and not memory.read_u64(group + Attribute.GROUP_BINS):
        text = f"sysfs: (bin_)attrs not set by subsystem for group: {part.name(kobject)}/{name}"
        warn(kernel, _PLACE, text)
        return -EINVAL
    if name:
        above = part.directory(path)
        below = above.lookup(name) if above is not None else None
        if above is None or (below is not None and not update):
            kernel.log.write(f"sysfs: cannot create duplicate filename '{path.removeprefix('/sys')}/{name}'", level=4)
            return -EEXIST
        if below is None:
            above.add(name, MemoryDirectory(kernel.machine.journal, writable=False, create_errno=EACCES))
    done: list[str] = []
    for binary, members, visible_at in (
        (False, attrs, Attribute.GROUP_VISIBLE),
        (True, bins, Attribute.GROUP_BIN_VISIBLE),
    ):
        visible = memory.read_u64(group + visible_at)
        for index, attribute in enumerate(members):
            mode = attribute_mode(kernel, attribute)
            if update:
                remove_file(kernel, kobject, attribute_name(kernel, attribute), name)
            if visible:
                mode = kernel.call(visible, kobject, attribute, index) & 0xFFFF
                if not mode:
                    continue
            if mode & ~_GROUP_MODES & 0xFFFF:
                full = f"{path.removeprefix('/sys')}/{name}/{attribute_name(kernel, attribute)}".replace("//", "/")
                warn(kernel, _PLACE, f"Attribute {full}: Invalid permissions 0{mode:o}")
                mode &= _GROUP_MODES
            result = create_file(kernel, kobject, attribute, mode, name, binary)
            if result:
                for made in done:
                    remove_file(kernel, kobject, made, name)
                if name:
                    _discard_group(kernel, path, name)
                return result
            done.append(attribute_name(kernel, attribute))
    return 0


def _discard_group(kernel: Kernel, path: str, name: str) -> None:
    directory = kernel.part(Kobjects).directory(path)
    if directory is not None:
        directory.discard(name)


def remove_group(kernel: Kernel, kobject: int, group: int) -> None:
    """``sysfs_remove_group``: a named group that is not there is warned about."""
    part, memory = kernel.part(Kobjects), kernel.memory
    path = part.path(kobject)
    if path is None:
        return
    name_at = memory.read_u64(group + Attribute.GROUP_NAME)
    name = kernel.read_cstr(name_at, _NAME_LIMIT).decode("latin-1") if name_at else ""
    directory = part.directory(path)
    if name and (directory is None or directory.lookup(name) is None):
        warn(kernel, _PLACE, f"sysfs group '{name}' not found for kobject '{part.name(kobject)}'")
        return
    for at in (Attribute.GROUP_ATTRS, Attribute.GROUP_BINS):
        for attribute in pointers(kernel, memory.read_u64(group + at)):
            remove_file(kernel, kobject, attribute_name(kernel, attribute), name)
    if name:
        _discard_group(kernel, path, name)


def create_groups(kernel: Kernel, kobject: int, groups: int) -> int:
    """All groups of a NULL-terminated array, or none; 0 or -errno."""
    done: list[int] = []
    for group in pointers(kernel, groups):
        result = create_group(kernel, kobject, group)
        if result:
            for made in done:
                remove_group(kernel, kobject, made)
            return result
        done.append(group)
    return 0


def remove_groups(kernel: Kernel, kobject: int, groups: int) -> None:
    """Remove them again."""
    for group in pointers(kernel, groups):
        remove_group(kernel, kobject, group)
