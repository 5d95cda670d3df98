"""Reading properties of nodes (``drivers/of/property.c``), and the same through devices (``drivers/base/property.c``)."""

from __future__ import annotations

from pkvm_emu.kernel.devicetree.devices import Devices
from pkvm_emu.kernel.devicetree.nodes import DeviceTree, OfNode
from pkvm_emu.kernel.exports.of import node_at
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import S32, U32, U64, CStr, Ptr

ENXIO, EINVAL, ENODATA, EOVERFLOW, EILSEQ = 6, 22, 61, 75, 84


def _store_length(kernel: Kernel, pointer: int, value: bytes | None) -> None:
    if pointer and value is not None:
        kernel.memory.write_u32(pointer, len(value))


@kernel_symbol("of_get_property")
def of_get_property(kernel: Kernel, node: Ptr, name: CStr, length: Ptr) -> int:
    """The value of a property, NULL without it; its bytes are counted in ``*length`` where it exists."""
    found = node_at(kernel, node)
    if found is None or name is None:
        return 0
    _store_length(kernel, length, found.value(name))
    return found.values.get(name, 0)


@kernel_symbol("of_find_property")
def of_find_property(kernel: Kernel, node: Ptr, name: CStr, length: Ptr) -> int:
    """The ``struct property``, NULL without it."""
    found = node_at(kernel, node)
    if found is None or name is None:
        return 0
    _store_length(kernel, length, found.value(name))
    return found.structures.get(name, 0)


@kernel_symbol("of_property_present", "of_property_read_bool")
def of_property_present(kernel: Kernel, node: Ptr, name: CStr) -> bool:
    """Whether there is such a property."""
    found = node_at(kernel, node)
    return found is not None and found.value(name) is not None


# Numbers


def _sized(found: OfNode | None, name: str | None, least: int, most: int = 0) -> bytes | int:
    """The value of a property of at least and (unless 0) at most so many bytes, or the kernel's error for it."""
    value = found.value(name) if found is not None else None
    if value is None:
        return -EINVAL
    if not value:
        return -ENODATA
    if len(value) < least or (most and len(value) > most):
        return -EOVERFLOW
    return value


def read_array(
    kernel: Kernel, node: OfNode | None, name: str | None, out: int, least: int, most: int, size: int
) -> int:
    """``of_property_read_variable_uN_array``: elements read, or a negative errno.

    Args:
        kernel: the kernel.
        node: the node.
        name: the property.
        out: where the numbers go, little-endian.
        least: fewest elements that do.
        most: most elements that fit; 0: exactly ``least``, of a property that may be longer.
        size: bytes of an element.
    """
    value = _sized(node, name, least * size, most * size)
    if isinstance(value, int):
        return value
    count = len(value) // size if most else least
    words = (value[at : at + size][::-1] for at in range(0, count * size, size))
    kernel.memory.write(out, b"".join(words))
    return count


@kernel_symbol("of_property_read_variable_u8_array")
def read_u8_array(kernel: Kernel, node: Ptr, name: CStr, out: Ptr, least: U64, most: U64) -> int:
    """Read bytes."""
    return read_array(kernel, node_at(kernel, node), name, out, least, most, 1)


@kernel_symbol("of_property_read_variable_u16_array")
def read_u16_array(kernel: Kernel, node: Ptr, name: CStr, out: Ptr, least: U64, most: U64) -> int:
    """Read 16-bit numbers."""
    return read_array(kernel, node_at(kernel, node), name, out, least, most, 2)


@kernel_symbol("of_property_read_variable_u32_array")
def read_u32_array(kernel: Kernel, node: Ptr, name: CStr, out: Ptr, least: U64, most: U64) -> int:
    """Read 32-bit numbers."""
    return read_array(kernel, node_at(kernel, node), name, out, least, most, 4)


@kernel_symbol("of_property_read_variable_u64_array")
def read_u64_array(kernel: Kernel, node: Ptr, name: CStr, out: Ptr, least: U64, most: U64) -> int:
    """Read 64-bit numbers."""
    return read_array(kernel, node_at(kernel, node), name, out, least, most, 8)


def _read_at(kernel: Kernel, node: int, name: str | None, index: int, out: int, size: int) -> int:
    value = _sized(node_at(kernel, node), name, (index + 1) * size)
    if isinstance(value, int):
        return value
    kernel.memory.write(out, value[index * size : (index + 1) * size][::-1])
    return 0


@kernel_symbol("of_property_read_u32_index")
def read_u32_index(kernel: Kernel, node: Ptr, name: CStr, index: U32, out: Ptr) -> int:
    """One 32-bit number of a list."""
    return _read_at(kernel, node, name, index, out, 4)


@kernel_symbol("of_property_read_u64_index")
def read_u64_index(kernel: Kernel, node: Ptr, name: CStr, index: U32, out: Ptr) -> int:
    """One 64-bit number of a list."""
    return _read_at(kernel, node, name, index, out, 8)


@kernel_symbol("of_property_read_u64")
def read_u64(kernel: Kernel, node: Ptr, name: CStr, out: Ptr) -> int:
    """A 64-bit number."""
    return _read_at(kernel, node, name, 0, out, 8)


@kernel_symbol("of_property_count_elems_of_size")
def count_elements(kernel: Kernel, node: Ptr, name: CStr, size: S32) -> int:
    """Elements of ``size`` bytes in a property; -EINVAL without it or where they do not come out even, -ENODATA if empty."""
    found = node_at(kernel, node)
    value = found.value(name) if found is not None else None
    if value is None:
        return -EINVAL
    if not value:
        return -ENODATA
    if size <= 0 or len(value) % size:
        path = found.path if found is not None else ""
        kernel.log.write(f"OF: size of {name} in node {path} is not a multiple of {size}", 3)
        return -EINVAL
    return len(value) // size


# Strings


@kernel_symbol("of_property_read_string")
def read_string(kernel: Kernel, node: Ptr, name: CStr, out: Ptr) -> int:
    """The first string; -EILSEQ where it does not end inside the property."""
    found = node_at(kernel, node)
    value = found.value(name) if found is not None else None
    if value is None or found is None or name is None:
        return -EINVAL
    if not value:
        return -ENODATA
    if 0 not in value:
        return -EILSEQ
    kernel.memory.write_u64(out, found.values[name])
    return 0


@kernel_symbol("of_property_match_string")
def match_string(kernel: Kernel, node: Ptr, name: CStr, text: CStr) -> int:
    """The index of a string in a list; -ENODATA where it is not there."""
    found = node_at(kernel, node)
    value = found.value(name) if found is not None else None
    if value is None:
        return -EINVAL
    parts = value.split(b"\0")
    wanted = (text or "").encode("latin-1")
    if wanted in parts[:-1]:
        return parts.index(wanted)
    return -EILSEQ if parts[-1] else -ENODATA


@kernel_symbol("of_property_read_string_helper")
def read_string_helper(kernel: Kernel, node: Ptr, name: CStr, out: Ptr, most: U64, skip: S32) -> int:
    """Pointers to the strings of a list from number ``skip`` on; how many, or with no ``out`` how many there are."""
    found = node_at(kernel, node)
    value = found.value(name) if found is not None else None
    if value is None or found is None or name is None:
        return -EINVAL
    count, at = 0, 0
    while at < len(value) and (not out or count < skip + most):
        end = value.find(b"\0", at)
        if end < 0:
            return -EILSEQ
        if out and count >= skip:
            kernel.memory.write_u64(out + 8 * (count - skip), found.values[name] + at)
        count += 1
        at = end + 1
    count -= skip
    return -ENODATA if count <= 0 else count


@kernel_symbol("of_prop_next_string")
def next_string(kernel: Kernel, structure: Ptr, current: Ptr) -> int:
    """The string after ``current`` in a property."""
    if not structure:
        return 0
    memory = kernel.memory
    start, length = memory.read_u64(structure + 16), memory.read_u32(structure + 8)
    if not current:
        return start if length else 0
    following = current + len(memory.read_cstr(current)) + 1
    return following if following < start + length else 0


@kernel_symbol("of_prop_next_u32")
def next_u32(kernel: Kernel, structure: Ptr, current: Ptr, out: Ptr) -> int:
    """The cell after ``current`` in a property; its number goes to ``*out``."""
    if not structure:
        return 0
    memory = kernel.memory
    start, length = memory.read_u64(structure + 16), memory.read_u32(structure + 8)
    following = current + 4 if current else start
    if following + 4 > start + length:
        return 0
    memory.write_u32(out, int.from_bytes(memory.read(following, 4), "big"))
    return following


# The same through devices and firmware nodes


def _of_device(kernel: Kernel, device: int) -> OfNode | None:
    return kernel.part(Devices).at(device).node


def _read(kernel: Kernel, found: OfNode | None, name: str | None, out: int, count: int, size: int) -> int:
    """``*_property_read_uN_array``: with no ``out`` the number of elements. A missing node or property is -EINVAL."""
    if out:
        result = read_array(kernel, found, name, out, count, 0, size)
        return min(result, 0)
    value = found.value(name) if found is not None else None
    if value is None:
        return -EINVAL
    if not value:
        return -ENODATA
    return len(value) // size if len(value) % size == 0 else -EINVAL


def _strings(kernel: Kernel, found: OfNode | None, name: str | None, out: int, count: int) -> int:
    return read_string_helper(kernel, found.address if found is not None else 0, name, out, count, 0)


@kernel_symbol("device_property_present")
def device_property_present(kernel: Kernel, device: Ptr, name: CStr) -> bool:
    """Whether a device's node has a property."""
    found = _of_device(kernel, device)
    return found is not None and found.value(name) is not None


@kernel_symbol("device_property_read_u8_array")
def device_u8(kernel: Kernel, device: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """Bytes of a device's node."""
    return _read(kernel, _of_device(kernel, device), name, out, count, 1)


@kernel_symbol("device_property_read_u16_array")
def device_u16(kernel: Kernel, device: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """16-bit numbers of a device's node."""
    return _read(kernel, _of_device(kernel, device), name, out, count, 2)


@kernel_symbol("device_property_read_u32_array")
def device_u32(kernel: Kernel, device: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """32-bit numbers of a device's node."""
    return _read(kernel, _of_device(kernel, device), name, out, count, 4)


@kernel_symbol("device_property_read_u64_array")
def device_u64(kernel: Kernel, device: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """64-bit numbers of a device's node."""
    return _read(kernel, _of_device(kernel, device), name, out, count, 8)


@kernel_symbol("device_property_read_string")
def device_string(kernel: Kernel, device: Ptr, name: CStr, out: Ptr) -> int:
    """The first string of a property of a device's node."""
    return min(_strings(kernel, _of_device(kernel, device), name, out, 1), 0)


@kernel_symbol("device_property_read_string_array")
def device_strings(kernel: Kernel, device: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """The strings of a property of a device's node."""
    return _strings(kernel, _of_device(kernel, device), name, out, count)


@kernel_symbol("device_property_match_string")
def device_match_string(kernel: Kernel, device: Ptr, name: CStr, text: CStr) -> int:
    """The index of a string in a property of a device's node."""
    found = _of_device(kernel, device)
    return match_string(kernel, found.address if found is not None else 0, name, text)


@kernel_symbol("fwnode_property_present")
def fwnode_property_present(kernel: Kernel, handle: Ptr, name: CStr) -> bool:
    """Whether a firmware node has a property."""
    found = kernel.part(DeviceTree).of_fwnode(handle)
    return found is not None and found.value(name) is not None


@kernel_symbol("fwnode_property_read_u32_array")
def fwnode_u32(kernel: Kernel, handle: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """32-bit numbers of a firmware node."""
    return _read(kernel, kernel.part(DeviceTree).of_fwnode(handle), name, out, count, 4)


@kernel_symbol("fwnode_property_read_u64_array")
def fwnode_u64(kernel: Kernel, handle: Ptr, name: CStr, out: Ptr, count: U64) -> int:
    """64-bit numbers of a firmware node."""
    return _read(kernel, kernel.part(DeviceTree).of_fwnode(handle), name, out, count, 8)


@kernel_symbol("fwnode_property_read_string")
def fwnode_string(kernel: Kernel, handle: Ptr, name: CStr, out: Ptr) -> int:
    """The first string of a property of a firmware node."""
    return min(_strings(kernel, kernel.part(DeviceTree).of_fwnode(handle), name, out, 1), 0)
