"""The device trees of a boot image: several blobs behind each other, or a table of them (``dtb.img``, ``dtbo.img``).

Source: the blob header of the Devicetree Specification; system/libufdt ``dt_table.h``.
"""

from __future__ import annotations

from pkvm_emu.errors import InputError

_MAGIC, _TABLE_MAGIC = b"\xd0\x0d\xfe\xed", b"\xd7\xb7\xab\x1e"
_HEADER = 40
_COUNT_LIMIT = 256


def split_device_trees(data: memoryview, name: str) -> list[tuple[str, bytes]]:
    """The blobs in a section of device trees, each with a name for people.

    Raises:
        InputError: a blob or an entry of the table that reaches beyond the end.
    """
    places = _table(data, name) if bytes(data[:4]) == _TABLE_MAGIC else _sequence(data, name)
    if len(places) > _COUNT_LIMIT:
        raise InputError(f"{name}: {len(places)} device trees, the limit is {_COUNT_LIMIT}")
    return [(f"{name} (device tree {index})", bytes(data[at : at + size])) for index, (at, size) in enumerate(places)]


def _u32(data: memoryview, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "big")


def _sequence(data: memoryview, name: str) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    position = 0
    while position + 8 <= len(data) and bytes(data[position : position + 4]) == _MAGIC:
        size = _u32(data, position + 4)
        if size < _HEADER or position + size > len(data):
            raise InputError(f"{name}: device tree {len(places)} ({size} bytes) reaches beyond the end of its section")
        places.append((position, size))
        position += size
        # Some tools pad each blob.
        while position < len(data) and data[position] == 0:
            position += 1
    if bytes(data[position:]).strip(b"\0"):
        raise InputError(f"{name}: no device tree (magic d00dfeed) at offset {position:#x} of its section")
    return places


def _table(data: memoryview, name: str) -> list[tuple[int, int]]:
    entry_size, count, start = (_u32(data, offset) for offset in (12, 16, 20))
    if count > _COUNT_LIMIT or entry_size < 8 or start + count * entry_size > len(data):
        raise InputError(f"{name}: a bad table of device trees ({count} entries of {entry_size} bytes at {start:#x})")
    places = []
    for index in range(count):
        at = start + index * entry_size
        size, offset = _u32(data, at), _u32(data, at + 4)
        if offset + size > len(data) or bytes(data[offset : offset + 4]) != _MAGIC:
            raise InputError(f"{name}: entry {index} of the table of device trees is no device tree")
        places.append((offset, size))
    return places
