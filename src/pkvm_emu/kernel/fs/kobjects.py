"""Kobjects: names, references and directories of sysfs (``lib/kobject.c``, ``fs/sysfs/dir.c``).

The reference count, name, parent and state bits are in the ``struct kobject`` in guest memory, where compiled code reads them. Here
is which directory of ``/sys`` each one has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.abi.errno import EEXIST, EINVAL, ENOENT, ENOMEM
from pkvm_emu.abi.file_structs import Kobject
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.memory_fs import MemoryDirectory
from pkvm_emu.kernel.fs.module_files import ModuleFiles
from pkvm_emu.kernel.fs.node import EACCES
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_INITIALIZED, _IN_SYSFS, _ADD_SENT, _REMOVE_SENT = 1, 2, 4, 8
_NAME_LIMIT = 4096
_PLACE = "lib/kobject.c"


@kernel_part
class Kobjects(State):
    """Where kobjects are in sysfs.

    Attributes:
        paths: directory by kobject address.
        direct: objects whose attributes' own functions are called, and with what before the buffer: ``object`` (object and
            attribute: devices, classes), ``driver`` (the object alone), ``module`` (attribute and object).
        uevents: what ``kobject_uevent`` announced: action and device path.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.kobjects")
        self._kernel = kernel
        self.paths: StateDict[int, str] = StateDict(journal, "kernel.kobjects.paths")
        self.direct: StateDict[int, str] = StateDict(journal, "kernel.kobjects.direct")
        self.uevents: StateDict[int, tuple[str, str]] = StateDict(journal, "kernel.kobjects.uevents")

    # Directories

    def path(self, kobject: int) -> str | None:
        """The directory of a kobject; None where it has none. Those of devices and modules are made at first sight."""
        found = self.paths.get(kobject)
        if found is not None or not kobject:
            return found
        found = self._implied(kobject)
        if found is not None:
            self.place(kobject, found, "module" if found.startswith("/sys/module/") else "object")
        return found

    def place(self, address: int, path: str, form: str = "object") -> None:
        """Give an object of the driver core its directory; its attributes are called with the object itself."""
        self.paths[address] = path
        self.direct[address] = form
        if self.directory(path) is None:
            self._make(path)

    def take(self, kobject: int, path: str) -> None:
        """Let a kobject stand for a directory that is there, or is made now."""
        self.paths[kobject] = path
        self._mark(kobject, _IN_SYSFS)
        if self.directory(path) is None:
            self._make(path)

    def displace(self, address: int) -> None:
        """Take it away again, with all that is in it."""
        path = self.paths.pop(address, None)
        self.direct.pop(address, None)
        if path is not None:
            self._drop(path)

    def _implied(self, kobject: int) -> str | None:
        from pkvm_emu.kernel.devicetree.devices import Devices

        device = self._kernel.part(Devices).by_address.get(kobject)
        if device is not None and device.platform:
            return f"/sys/devices/platform/{device.name}"
        module = self._kernel.loader.find(kobject)
        inside = module.symbol("__this_module") if module is not None else None
        if module is not None and inside is not None and inside <= kobject < inside + module_struct_size(module):
            return f"/sys/module/{module.name}"
        return None

    def directory(self, path: str) -> MemoryDirectory | None:
        """The directory at a path, where entries can be hung into it."""
        found = self._kernel.part(FileSystem).find(path)
        extra = getattr(found, "extra", None)
        node = extra if isinstance(extra, MemoryDirectory) else found
        return node if isinstance(node, MemoryDirectory) else None

    def _make(self, path: str) -> MemoryDirectory:
        fs = self._kernel.part(FileSystem)
        made = MemoryDirectory(fs.journal, writable=False, mode=0o755, create_errno=EACCES)
        fs.add(path, made)
        return made

    def _drop(self, path: str) -> None:
        """Take a directory out; files of it that are open give -ENODEV from now on."""
        from pkvm_emu.kernel.fs.sysfs_attributes import AttributeFile

        waiting = [self._kernel.part(FileSystem).find_link(path)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, AttributeFile):
                node.removed = True
            elif isinstance(node, MemoryDirectory):
                waiting += node.nodes.values()
        self._kernel.part(FileSystem).discard(path)
        self._kernel.part(ModuleFiles).forget(path)

    # struct kobject

    def name(self, kobject: int) -> str:
        """Its name."""
        pointer = self._kernel.memory.read_u64(kobject + Kobject.NAME)
        return self._kernel.read_cstr(pointer, _NAME_LIMIT).decode("latin-1") if pointer else ""

    def set_name(self, kobject: int, name: str) -> int:
        """Give it a name ("/" becomes "!"); 0, or -ENOMEM."""
        data = name.replace("/", "!").encode("latin-1") + b"\0"
        address = self._kernel.part(Slab).kmalloc(len(data))
        if address is None:
            return -ENOMEM
        self._kernel.memory.write(address, data)
        self._free_name(kobject)
        self._kernel.memory.write_u64(kobject + Kobject.NAME, address)
        return 0

    def _free_name(self, kobject: int) -> None:
        old = self._kernel.memory.read_u64(kobject + Kobject.NAME)
        if old in self._kernel.part(Slab).live:
            self._kernel.part(Slab).kfree(old)

    def _state(self, kobject: int) -> int:
        return self._kernel.memory.read(kobject + Kobject.STATE, 1)[0]

    def _mark(self, kobject: int, bits: int, on: bool = True) -> None:
        state = self._state(kobject)
        self._kernel.memory.write(kobject + Kobject.STATE, bytes((state | bits if on else state & ~bits,)))

    def initialise(self, kobject: int, ktype: int) -> None:
        """``kobject_init``: one reference, no name."""
        memory = self._kernel.memory
        if self._state(kobject) & _INITIALIZED:
            self._kernel.log.write(
                f"kobject ({kobject:#x}): tried to init an initialized object, something is seriously wrong.", level=3
            )
        memory.write_u32(kobject + Kobject.KREF, 1)
        entry = kobject + Kobject.ENTRY
        memory.write_u64(entry, entry)
        memory.write_u64(entry + 8, entry)
        memory.write(kobject + Kobject.STATE, bytes((_INITIALIZED,)))
        memory.write_u64(kobject + Kobject.KTYPE, ktype)

    def add(self, kobject: int, parent: int, path: str | None = None) -> int:
        """``kobject_add_internal``: take a reference of the parent and make the directory; 0 or -errno.

        ``path`` is given for objects whose place is not below their parent's (devices of a class).
        """
        memory, name = self._kernel.memory, self.name(kobject)
        if not name:
            warn(self._kernel, _PLACE, f"kobject: ({kobject:#x}): attempted to be registered with empty name!")
            return -EINVAL
        kset = memory.read_u64(kobject + Kobject.KSET)
        if not parent and kset:
            parent = kset + Kobject.KSET_KOBJ
        above = self.path(parent) if parent else "/sys"
        if path is None and above is None:
            return -ENOENT
        wanted = path or f"{above}/{name}"
        if self._kernel.part(FileSystem).find(wanted) is not None:
            self._duplicate(wanted)
            self._kernel.log.write(
                f"kobject: kobject_add_internal failed for {name} with -EEXIST, don't try to register things with the same "
                "name in the same directory.",
                level=3,
            )
            return -EEXIST
        memory.write_u64(kobject + Kobject.PARENT, parent)
        if parent:
            self.get(parent)
        self._make(wanted)
        self.paths[kobject] = wanted
        self._mark(kobject, _IN_SYSFS)
        return 0

    def _duplicate(self, path: str) -> None:
        self._kernel.log.write(f"sysfs: cannot create duplicate filename '{path.removeprefix('/sys')}'", level=4)

    def add_default_groups(self, kobject: int) -> int:
        """The attribute groups of its type; 0 or -errno."""
        from pkvm_emu.kernel.fs.sysfs_attributes import create_groups

        ktype = self._kernel.memory.read_u64(kobject + Kobject.KTYPE)
        groups = self._kernel.memory.read_u64(ktype + Kobject.TYPE_GROUPS) if ktype else 0
        return create_groups(self._kernel, kobject, groups) if groups else 0

    def remove(self, kobject: int) -> None:
        """``kobject_del``: the directory goes, and the reference of the parent."""
        path = self.paths.pop(kobject, None)
        if path is not None and self._state(kobject) & _IN_SYSFS:
            self._drop(path)
        self._mark(kobject, _IN_SYSFS, on=False)
        parent = self._kernel.memory.read_u64(kobject + Kobject.PARENT)
        self._kernel.memory.write_u64(kobject + Kobject.PARENT, 0)
        if parent:
            self.put(parent)

    # References

    def get(self, kobject: int) -> int:
        """One more reference; the kobject."""
        if kobject:
            if not self._state(kobject) & _INITIALIZED and kobject not in self.paths:
                warn(
                    self._kernel,
                    _PLACE,
                    f"kobject: '{self.name(kobject)}' is not initialized, yet kobject_get() is called.",
                )
            count = self._kernel.memory.read_u32(kobject + Kobject.KREF)
            self._kernel.memory.write_u32(kobject + Kobject.KREF, count + 1)
        return kobject

    def put(self, kobject: int) -> None:
        """One reference less; the last one removes it and calls its type's ``release``."""
        if not kobject:
            return
        memory = self._kernel.memory
        count = memory.read_u32(kobject + Kobject.KREF)
        if not self._state(kobject) & _INITIALIZED:
            warn(
                self._kernel,
                _PLACE,
                f"kobject: '{self.name(kobject)}' is not initialized, yet kobject_put() is called.",
            )
        if not count:
            warn(self._kernel, "lib/refcount.c", "refcount_t: underflow; use-after-free.")
            return
        memory.write_u32(kobject + Kobject.KREF, count - 1)
        if count == 1:
            self._clean_up(kobject)

    def _clean_up(self, kobject: int) -> None:
        from pkvm_emu.kernel.fs.device_model import DeviceModel

        memory = self._kernel.memory
        if kobject in self.direct:
            memory.write_u32(kobject + Kobject.KREF, 1)
            self._kernel.part(DeviceModel).put(kobject)
            return
        if self._state(kobject) & _IN_SYSFS:
            self.remove(kobject)
        name = memory.read_u64(kobject + Kobject.NAME)
        ktype = memory.read_u64(kobject + Kobject.KTYPE)
        release = memory.read_u64(ktype + Kobject.TYPE_RELEASE) if ktype else 0
        if release:
            self._kernel.call(release, kobject)
        elif ktype:
            self._kernel.log.write(
                f"kobject: '{self.name(kobject)}' ({kobject:#x}): does not have a release() function, it is broken and must be "
                "fixed. See Documentation/core-api/kobject.rst.",
                level=4,
            )
        if name in self._kernel.part(Slab).live:
            self._kernel.part(Slab).kfree(name)

    def announce(self, kobject: int, action: str) -> int:
        """``kobject_uevent``; 0, or -EINVAL for an action that there is not."""
        if action == "add":
            self._mark(kobject, _ADD_SENT)
        if action == "remove":
            self._mark(kobject, _REMOVE_SENT)
        path = self.path(kobject) or ""
        self.uevents[len(self.uevents)] = (action, path.removeprefix("/sys"))
        return 0


def module_struct_size(module: object) -> int:
    """Bytes of a module's ``struct module``."""
    section = module.file.section(".gnu.linkonce.this_module")  # type: ignore[attr-defined]  # the loader's class is not imported here
    return section.size if section is not None else 0
