"""Classes and devices in sysfs and ``/dev`` (``drivers/base/{core,class,devtmpfs}.c``).

A ``struct device`` that a driver made, or that ``device_create`` made for it, gets its directory, its links, its attributes
and, with a device number, its node in ``/dev``.
"""

from __future__ import annotations

from posixpath import relpath
from typing import TYPE_CHECKING, NamedTuple

from pkvm_emu.abi.errno import EEXIST, EINVAL, ENOMEM
from pkvm_emu.abi.file_structs import ClassLayout, DeviceTail, Kobject, MiscDevice
from pkvm_emu.kernel.devicetree.devices import Device, Devices
from pkvm_emu.kernel.fs.chrdevs import MINOR_BITS, MINOR_MASK, MISC_MAJOR, Chrdevs, DeviceNode
from pkvm_emu.kernel.fs.filesystem import FileSystem
from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.fs.module_files import ModuleFiles
from pkvm_emu.kernel.fs.node import Symlink
from pkvm_emu.kernel.fs.sysfs import SysfsFile
from pkvm_emu.kernel.fs.sysfs_attributes import create_groups, remove_groups
from pkvm_emu.kernel.kernel_bug import warn
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.state import State, StateDict

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

_NAME_LIMIT = 256
_DEFAULT_MODE = 0o600
#: From this line on ``struct class`` has no owner.
_NO_CLASS_OWNER = (6, 4)
_TYPE_OFFSET, _TYPE_GROUPS, _TYPE_RELEASE = 120, 8, 40


class Class(NamedTuple):
    """A registered class: its name, and whether the kernel allocated the structure."""

    name: str
    is_ours: bool


class Placed(NamedTuple):
    """What adding a device made: its node in /dev, the link in its class (both empty without), allocated by the kernel."""

    node: str
    link: str


@kernel_part
class DeviceModel(State):
    """Registered classes, and devices that are in sysfs.

    Attributes:
        classes: by address of the ``struct class``.
        placed: by address of the ``struct device``.
        ours: devices whose memory ``device_create`` allocated.
    """

    def __init__(self, kernel: Kernel) -> None:
        journal = kernel.machine.journal
        super().__init__(journal, "kernel.device_model")
        self._kernel = kernel
        self.classes: StateDict[int, Class] = StateDict(journal, "kernel.device_model.classes")
        self.placed: StateDict[int, Placed] = StateDict(journal, "kernel.device_model.placed")
        self.ours: StateDict[int, bool] = StateDict(journal, "kernel.device_model.ours")

    # Classes

    def _class_field(self, address: int, index: int) -> int:
        old = self._kernel.generation.kernel < _NO_CLASS_OWNER
        offsets = ClassLayout.WITH_OWNER if old else ClassLayout.WITHOUT_OWNER
        return self._kernel.memory.read_u64(address + offsets[index])

    def create_class(self, name: str) -> int:
        """Allocate and register a class; its address, or -errno."""
        slab, memory = self._kernel.part(Slab), self._kernel.memory
        zero = line_facts(self._kernel.generation.kernel).gfp_zero
        text = name.encode("latin-1") + b"\0"
        address = slab.kmalloc(ClassLayout.BYTES + len(text), zero)
        if address is None:
            return -ENOMEM
        memory.write(address + ClassLayout.BYTES, text)
        memory.write_u64(address + ClassLayout.NAME, address + ClassLayout.BYTES)
        result = self.register_class(address, is_ours=True)
        if result:
            slab.kfree(address)
        return result or address

    def register_class(self, address: int, is_ours: bool = False) -> int:
        """``class_register``; 0 or -errno."""
        memory, kobjects = self._kernel.memory, self._kernel.part(Kobjects)
        name = self._kernel.read_cstr(memory.read_u64(address), _NAME_LIMIT).decode("latin-1")
        path = f"/sys/class/{name}"
        if not name:
            return -EINVAL
        if any(known.name == name for known in self.classes.values()):
            self._kernel.log.write(f"sysfs: cannot create duplicate filename '/class/{name}'", level=4)
            return -EEXIST
        self.classes[address] = Class(name, is_ours)
        kobjects.place(address, path)
        groups = self._class_field(address, 0)
        result = create_groups(self._kernel, address, groups) if groups else 0
        if result:
            self.unregister_class(address)
        return result

    def misc_class(self) -> int:
        """The class ``misc``, which the kernel itself has."""
        found = next((address for address, known in self.classes.items() if known.name == "misc"), None)
        return found if found is not None else self.create_class("misc")

    def unregister_class(self, address: int) -> None:
        """``class_unregister``, and the memory of a class that ``class_create`` made."""
        known = self.classes.pop(address, None)
        if known is None:
            return
        self._kernel.part(Kobjects).displace(address)
        if known.is_ours:
            self._kernel.part(Slab).kfree(address, "class_destroy")

    # Devices

    def initialise(self, device: int) -> Device:
        """``device_initialize``: one reference, empty lists."""
        found = self._kernel.part(Devices).at(device)
        tail = device + found.layout.of_node
        self._kernel.part(Kobjects).initialise(device, 0)
        head = tail + 32
        self._kernel.memory.write_u64(head, head)
        self._kernel.memory.write_u64(head + 8, head)
        return found

    def create(self, cls: int, parent: int, number: int, data: int, groups: int, name: str, release: int = 0) -> int:
        """``device_create``: a device of a class; its address, or -errno."""
        devices, memory = self._kernel.part(Devices), self._kernel.memory
        layout = devices.caller_layout()
        zero = line_facts(self._kernel.generation.kernel).gfp_zero
        device = self._kernel.part(Slab).kmalloc(layout.device_size, zero)
        if device is None:
            return -ENOMEM
        devices.by_address.pop(device, None)
        tail = device + layout.of_node
        memory.write_u64(device + layout.parent, parent)
        memory.write_u64(device + layout.driver_data, data)
        memory.write_u32(tail + DeviceTail.DEVT, number)
        memory.write_u64(tail + DeviceTail.CLASS, cls)
        memory.write_u64(tail + DeviceTail.GROUPS, groups)
        self.initialise(device)
        self.ours[device] = True
        devices.rename(devices.at(device), name)
        result = self.add(device)
        if result:
            self.put(device)
            return result
        return device

    def add(self, device: int) -> int:
        """``device_add``: directory, attributes, links and node; 0 or -errno."""
        kernel, memory = self._kernel, self._kernel.memory
        devices, kobjects, fs = kernel.part(Devices), kernel.part(Kobjects), kernel.part(FileSystem)
        found = devices.at(device)
        layout = found.layout
        initial = memory.read_u64(device + layout.init_name)
        if not found.name and initial:
            devices.rename(found, kernel.read_cstr(initial, _NAME_LIMIT).decode("latin-1"))
        if not found.name:
            return -EINVAL
        tail = device + layout.of_node
        cls = memory.read_u64(tail + DeviceTail.CLASS)
        parent = memory.read_u64(device + layout.parent)
        path = self._path(found, cls, parent)
        if fs.find(path) is not None:
            kernel.log.write(f"sysfs: cannot create duplicate filename '{path.removeprefix('/sys')}'", level=4)
            return -EEXIST
        kobjects.place(device, path)
        number = self.number(device)
        link = ""
        if cls in self.classes:
            name = self.classes[cls].name
            link = f"/sys/class/{name}/{_sysfs_name(found.name)}"
            fs.add(f"{path}/subsystem", Symlink(relpath(f"/sys/class/{name}", path)))
            fs.add(link, Symlink(relpath(path, f"/sys/class/{name}")))
        fs.add(f"{path}/uevent", SysfsFile(lambda: self._uevent(device), lambda data: 0, 0o644))
        self.placed[device] = Placed("", link)
        result = self._add_groups(device)
        if result:
            self.remove(device)
            return result
        if number:
            device_number = (number >> MINOR_BITS, number & MINOR_MASK)
            fs.add(f"{path}/dev", SysfsFile(lambda: f"{device_number[0]}:{device_number[1]}\n"))
            if device_number[0]:
                self.placed[device] = Placed(self._make_node(found, cls, device_number), link)
        kobjects.announce(device, "add")
        return 0

    def _path(self, found: Device, cls: int, parent: int) -> str:
        kobjects = self._kernel.part(Kobjects)
        name = _sysfs_name(found.name)
        above = kobjects.path(parent) if parent else None
        known = self.classes.get(cls)
        if known is None:
            return f"{above or ('/sys/devices/platform' if found.platform else '/sys/devices')}/{name}"
        if above is None:
            return f"/sys/devices/virtual/{known.name}/{name}"
        tail = parent + self._kernel.part(Devices).at(parent).layout.of_node
        if self._kernel.memory.read_u64(tail + DeviceTail.CLASS) in self.classes:
            return f"{above}/{name}"
        return f"{above}/{known.name}/{name}"

    def _groups(self, device: int) -> list[int]:
        memory = self._kernel.memory
        tail = device + self._kernel.part(Devices).at(device).layout.of_node
        cls = memory.read_u64(tail + DeviceTail.CLASS)
        kind = memory.read_u64(device + _TYPE_OFFSET)
        return [
            self._class_field(cls, 1) if cls in self.classes else 0,
            memory.read_u64(kind + _TYPE_GROUPS) if kind else 0,
            memory.read_u64(tail + DeviceTail.GROUPS),
        ]

    def _add_groups(self, device: int) -> int:
        for groups in self._groups(device):
            result = create_groups(self._kernel, device, groups) if groups else 0
            if result:
                return result
        return 0

    def _make_node(self, found: Device, cls: int, number: tuple[int, int]) -> str:
        """The node in /dev: name and mode are what ``class->devnode`` says."""
        kernel, memory = self._kernel, self._kernel.memory
        name, mode = found.name.replace("!", "/"), _DEFAULT_MODE
        misc = self._kernel.part(Chrdevs).misc.get(number[1], 0) if number[0] == MISC_MAJOR else 0
        if misc:
            given = memory.read_u64(misc + MiscDevice.NODENAME)
            name = kernel.read_cstr(given, _NAME_LIMIT).decode("latin-1") if given else name
            mode = int.from_bytes(memory.read(misc + MiscDevice.MODE, 2), "little") & 0o777 or mode
        naming = self._class_field(cls, 2) if cls in self.classes and not misc else 0
        if naming:
            place = kernel.part(Slab).kmalloc(8, line_facts(kernel.generation.kernel).gfp_zero) or 0
            given = kernel.call(naming, found.address, place)
            mode = int.from_bytes(memory.read(place, 2), "little") & 0o777 or mode
            kernel.part(Slab).kfree(place)
            if given:
                name = kernel.read_cstr(given, _NAME_LIMIT).decode("latin-1")
                if given in kernel.part(Slab).live:
                    kernel.part(Slab).kfree(given)
        return self.make_node(name, number, mode)

    def make_node(self, name: str, number: tuple[int, int], mode: int) -> str:
        """A node in /dev; its path."""
        path = f"/dev/{name}"
        self._kernel.part(FileSystem).add(path, DeviceNode(self._kernel, number, mode))
        self._kernel.part(ModuleFiles).note(path, number)
        return path

    def _uevent(self, device: int) -> str:
        tail = device + self._kernel.part(Devices).at(device).layout.of_node
        number = self._kernel.memory.read_u32(tail + DeviceTail.DEVT)
        if not number:
            return ""
        placed = self.placed.get(device)
        name = placed.node.removeprefix("/dev/") if placed is not None else ""
        return f"MAJOR={number >> MINOR_BITS}\nMINOR={number & MINOR_MASK}\n" + (f"DEVNAME={name}\n" if name else "")

    def remove(self, device: int) -> None:
        """``device_del``"""
        placed = self.placed.pop(device, None)
        if placed is None:
            return
        kernel = self._kernel
        for groups in reversed(self._groups(device)):
            if groups:
                remove_groups(kernel, device, groups)
        fs = kernel.part(FileSystem)
        if placed.link and isinstance(fs.find_link(placed.link), Symlink):
            fs.discard(placed.link)
        if placed.node:
            fs.discard(placed.node)
            kernel.part(ModuleFiles).forget(placed.node)
        kernel.part(Kobjects).announce(device, "remove")
        kernel.part(Kobjects).displace(device)

    def get(self, device: int) -> int:
        """One more reference."""
        if device:
            memory = self._kernel.memory
            memory.write_u32(device + Kobject.KREF, memory.read_u32(device + Kobject.KREF) + 1)
        return device

    def put(self, device: int) -> None:
        """One reference less; the last one releases the device."""
        if not device:
            return
        memory = self._kernel.memory
        count = memory.read_u32(device + Kobject.KREF)
        if count:
            memory.write_u32(device + Kobject.KREF, count - 1)
        if count == 1:
            self._release(device)

    def _release(self, device: int) -> None:
        kernel, memory = self._kernel, self._kernel.memory
        found = kernel.part(Devices).at(device)
        tail = device + found.layout.of_node
        cls = memory.read_u64(tail + DeviceTail.CLASS)
        kind = memory.read_u64(device + _TYPE_OFFSET)
        kernel.part(Devices).by_address.pop(device, None)
        if self.ours.pop(device, False):
            kernel.part(Slab).kfree(device, "put_device")
            return
        release = memory.read_u64(tail + DeviceTail.RELEASE)
        release = release or (memory.read_u64(kind + _TYPE_RELEASE) if kind else 0)
        release = release or (self._class_field(cls, 3) if cls in self.classes else 0)
        if release:
            kernel.call(release, device)
        else:
            text = "does not have a release() function, it is broken and must be fixed. See Documentation/core-api/kobject.rst."
            warn(kernel, "drivers/base/core.c", f"Device '{found.name}' {text}")

    def number(self, device: int) -> int:
        """``dev->devt``"""
        tail = device + self._kernel.part(Devices).at(device).layout.of_node
        return self._kernel.memory.read_u32(tail + DeviceTail.DEVT)

    def find(self, cls: int, number: int) -> int:
        """The device of a class with a device number; 0 without."""
        devices = self._kernel.part(Devices)
        for device in self.placed:
            tail = device + devices.at(device).layout.of_node
            memory = self._kernel.memory
            if memory.read_u32(tail + DeviceTail.DEVT) == number and memory.read_u64(tail + DeviceTail.CLASS) == cls:
                return device
        return 0


def _sysfs_name(name: str) -> str:
    return name.replace("/", "!")
