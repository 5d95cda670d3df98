"""Kobjects and ksets (``lib/kobject.c``, ``lib/kobject_uevent.c``)."""

from __future__ import annotations

import struct
from errno import EINVAL, EIO

from pkvm_emu.abi.file_structs import Attribute, Kobject
from pkvm_emu.kernel.exports.debugfs import text
from pkvm_emu.kernel.exports.format import va_list
from pkvm_emu.kernel.fs.kobjects import Kobjects
from pkvm_emu.kernel.guest_access import load_u32, load_u64, store, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.registry import kernel_symbol, kernel_variable
from pkvm_emu.kernel.slab import Slab
from pkvm_emu.machine.calling import U32, U64, CStr, Ptr, VarArgs

#: ``enum kobject_action``
_ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")
_TYPE_BYTES = 80


# Objects of the kernel itself


def _serve_object(name: str, path: str) -> None:
    def pointer(kernel: Kernel) -> bytes:
        address = kernel.part(Slab).kmalloc(Kobject.BYTES, line_facts(kernel.generation.kernel).gfp_zero) or 0
        part = kernel.part(Kobjects)
        part.initialise(address, kernel.symbols.resolve("dynamic_kobj_ktype"))
        part.set_name(address, path.rpartition("/")[2])
        part.take(address, path)
        return address.to_bytes(8, "little")

    pointer.__doc__ = f"``{name}``: {path}."
    kernel_variable(name, 8)(pointer)


for _name, _path in (
    ("kernel_kobj", "/sys/kernel"),
    ("firmware_kobj", "/sys/firmware"),
    ("fs_kobj", "/sys/fs"),
    ("power_kobj", "/sys/power"),
    ("mm_kobj", "/sys/kernel/mm"),
    ("hypervisor_kobj", "/sys/hypervisor"),
):
    _serve_object(_name, _path)


@kernel_variable("kobj_sysfs_ops", 16)
def kobj_sysfs_ops(kernel: Kernel) -> bytes:
    """Attributes that are a ``struct kobj_attribute``."""
    resolve = kernel.symbols.resolve
    return struct.pack("<QQ", resolve("kobj_attr_show"), resolve("kobj_attr_store"))


@kernel_variable("dynamic_kobj_ktype", _TYPE_BYTES)
def dynamic_kobj_ktype(kernel: Kernel) -> bytes:
    """The type of objects that ``kobject_create`` makes."""
    resolve = kernel.symbols.resolve
    return struct.pack("<QQ", resolve("dynamic_kobj_release"), resolve("kobj_sysfs_ops"))


@kernel_variable("kset_ktype", _TYPE_BYTES)
def kset_ktype(kernel: Kernel) -> bytes:
    """The type of ksets that ``kset_create_and_add`` makes."""
    resolve = kernel.symbols.resolve
    return struct.pack("<QQ", resolve("kset_release"), resolve("kobj_sysfs_ops"))


@kernel_symbol("kobj_attr_show", runs_guest=True)
def kobj_attr_show(kernel: Kernel, kobject: Ptr, attribute: Ptr, buf: Ptr) -> int:
    """Call an attribute's own ``show``; -EIO without."""
    function = load_u64(kernel, attribute + Attribute.SHOW)
    return kernel.call(function, kobject, attribute, buf) if function else -EIO


@kernel_symbol("kobj_attr_store", runs_guest=True)
def kobj_attr_store(kernel: Kernel, kobject: Ptr, attribute: Ptr, buf: Ptr, count: U64) -> int:
    """Call an attribute's own ``store``; -EIO without."""
    function = load_u64(kernel, attribute + Attribute.STORE)
    return kernel.call(function, kobject, attribute, buf, count) if function else -EIO


@kernel_symbol("dynamic_kobj_release", runs_guest=True)
def dynamic_kobj_release(kernel: Kernel, kobject: Ptr) -> None:
    """Free an object that ``kobject_create`` made."""
    kernel.part(Slab).kfree(kobject, "kobject_put")


@kernel_symbol("kset_release", runs_guest=True)
def kset_release(kernel: Kernel, kobject: Ptr) -> None:
    """Free a kset that ``kset_create_and_add`` made."""
    kernel.part(Slab).kfree(kobject - Kobject.KSET_KOBJ, "kset_unregister")


# Kobjects


@kernel_symbol("kobject_init", runs_guest=True)
def kobject_init(kernel: Kernel, kobject: Ptr, ktype: Ptr) -> None:
    """Make an object ready, with one reference."""
    kernel.part(Kobjects).initialise(kobject, ktype)


def _add(kernel: Kernel, kobject: int, parent: int, name: str) -> int:
    part = kernel.part(Kobjects)
    result = part.set_name(kobject, name) or part.add(kobject, parent)
    if result:
        return result
    result = part.add_default_groups(kobject)
    if result:
        part.remove(kobject)
    return result


@kernel_symbol("kobject_add", runs_guest=True)
def kobject_add(kernel: Kernel, kobject: Ptr, parent: Ptr, fmt: CStr, args: VarArgs) -> int:
    """Give it its name and its directory; 0 or -errno."""
    return _add(kernel, kobject, parent, kernel.format(fmt or "", args)) if kobject else -EINVAL


@kernel_symbol("kobject_init_and_add", runs_guest=True)
def kobject_init_and_add(kernel: Kernel, kobject: Ptr, ktype: Ptr, parent: Ptr, fmt: CStr, args: VarArgs) -> int:
    """Both; 0 or -errno (``kobject_put`` is due either way)."""
    kernel.part(Kobjects).initialise(kobject, ktype)
    return _add(kernel, kobject, parent, kernel.format(fmt or "", args))


@kernel_symbol("kobject_create_and_add", runs_guest=True)
def kobject_create_and_add(kernel: Kernel, name: Ptr, parent: Ptr) -> int:
    """A new object with a directory; NULL where that fails."""
    address = kernel.part(Slab).kmalloc(Kobject.BYTES, line_facts(kernel.generation.kernel).gfp_zero)
    if address is None:
        return 0
    part = kernel.part(Kobjects)
    part.initialise(address, kernel.symbols.resolve("dynamic_kobj_ktype"))
    if _add(kernel, address, parent, text(kernel, name)):
        part.put(address)
        return 0
    return address


@kernel_symbol("kobject_set_name", runs_guest=True)
def kobject_set_name(kernel: Kernel, kobject: Ptr, fmt: CStr, args: VarArgs) -> int:
    """Name an object; 0 or -ENOMEM."""
    return kernel.part(Kobjects).set_name(kobject, kernel.format(fmt or "", args))


@kernel_symbol("kobject_set_name_vargs", runs_guest=True)
def kobject_set_name_vargs(kernel: Kernel, kobject: Ptr, fmt: CStr, args: Ptr) -> int:
    """The same with a ``va_list``."""
    return kernel.part(Kobjects).set_name(kobject, kernel.format(fmt or "", va_list(kernel, args)))


@kernel_symbol("kobject_get", runs_guest=True)
def kobject_get(kernel: Kernel, kobject: Ptr) -> int:
    """One more reference; the object."""
    return kernel.part(Kobjects).get(kobject)


@kernel_symbol("kobject_get_unless_zero", runs_guest=True)
def kobject_get_unless_zero(kernel: Kernel, kobject: Ptr) -> int:
    """The same, but NULL for an object that is being released."""
    alive = kobject and load_u32(kernel, kobject + Kobject.KREF)
    return kernel.part(Kobjects).get(kobject) if alive else 0


@kernel_symbol("kobject_put", runs_guest=True)
def kobject_put(kernel: Kernel, kobject: Ptr) -> None:
    """One less; the last one calls the type's ``release``."""
    kernel.part(Kobjects).put(kobject)


@kernel_symbol("kobject_del", runs_guest=True)
def kobject_del(kernel: Kernel, kobject: Ptr) -> None:
    """Remove the directory."""
    if kobject:
        kernel.part(Kobjects).remove(kobject)


@kernel_symbol("kobject_get_path", runs_guest=True)
def kobject_get_path(kernel: Kernel, kobject: Ptr, flags: U32) -> int:
    """Its path below /sys as new memory, or NULL."""
    path = kernel.part(Kobjects).path(kobject)
    if path is None:
        return 0
    data = path.removeprefix("/sys").encode("latin-1") + b"\0"
    address = kernel.part(Slab).kmalloc(len(data), flags) or 0
    if address:
        kernel.memory.write(address, data)
    return address


def _announce(kernel: Kernel, kobject: int, action: int) -> int:
    return kernel.part(Kobjects).announce(kobject, _ACTIONS[action]) if action < len(_ACTIONS) else -EINVAL


@kernel_symbol("kobject_uevent", runs_guest=True)
def kobject_uevent(kernel: Kernel, kobject: Ptr, action: U32) -> int:
    """Tell user space; nobody listens, the announcement is kept (``kernel.part(Kobjects).uevents``). 0 or -EINVAL."""
    return _announce(kernel, kobject, action)


@kernel_symbol("kobject_uevent_env", runs_guest=True)
def kobject_uevent_env(kernel: Kernel, kobject: Ptr, action: U32, environment: Ptr) -> int:
    """The same with further variables."""
    return _announce(kernel, kobject, action)


# Ksets


@kernel_symbol("kset_init", runs_guest=True)
def kset_init(kernel: Kernel, kset: Ptr) -> None:
    """Make a kset ready."""
    kobject = kset + Kobject.KSET_KOBJ
    ktype = load_u64(kernel, kobject + Kobject.KTYPE)
    store(kernel, kset, struct.pack("<QQI", kset, kset, 0))
    kernel.part(Kobjects).initialise(kobject, ktype)


@kernel_symbol("kset_register", runs_guest=True)
def kset_register(kernel: Kernel, kset: Ptr) -> int:
    """Give a kset its directory; 0 or -errno."""
    if not kset:
        return -EINVAL
    kset_init(kernel, kset)
    part, kobject = kernel.part(Kobjects), kset + Kobject.KSET_KOBJ
    return part.add(kobject, load_u64(kernel, kobject + Kobject.PARENT)) or part.announce(kobject, "add")


@kernel_symbol("kset_create_and_add", runs_guest=True)
def kset_create_and_add(kernel: Kernel, name: Ptr, uevent: Ptr, parent: Ptr) -> int:
    """A new kset, or NULL."""
    kset = kernel.part(Slab).kmalloc(Kobject.KSET_BYTES, line_facts(kernel.generation.kernel).gfp_zero)
    if kset is None:
        return 0
    kobject, part = kset + Kobject.KSET_KOBJ, kernel.part(Kobjects)
    part.set_name(kobject, text(kernel, name))
    store_uint(kernel, kobject + Kobject.PARENT, parent, 8)
    store_uint(kernel, kobject + Kobject.KTYPE, kernel.symbols.resolve("kset_ktype"), 8)
    store_uint(kernel, kset + Kobject.KSET_UEVENT, uevent, 8)
    if kset_register(kernel, kset):
        kernel.part(Slab).kfree(kset)
        return 0
    return kset


@kernel_symbol("kset_unregister", runs_guest=True)
def kset_unregister(kernel: Kernel, kset: Ptr) -> None:
    """Take a kset away; NULL is ignored."""
    if kset:
        part, kobject = kernel.part(Kobjects), kset + Kobject.KSET_KOBJ
        part.remove(kobject)
        part.put(kobject)
