"""Android boot images: ``boot.img`` and ``init_boot.img`` (header versions 0 to 4), ``vendor_boot.img`` and
``vendor_kernel_boot.img`` (3 and 4).

Source: system/tools/mkbootimg/include/bootimg/bootimg.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from pkvm_emu.elf.elements import printable
from pkvm_emu.errors import InputError

BOOT_MAGIC, VENDOR_MAGIC = b"ANDROID!", b"VNDRBOOT"
#: Where every ``boot.img`` header has its version.
_VERSION_OFFSET = 40
_V3_PAGE = 4096
_PAGE_SIZES = tuple(2048 << shift for shift in range(8))
_CMDLINE, _EXTRA_CMDLINE, _V3_CMDLINE, _VENDOR_CMDLINE = (64, 512), (608, 1024), (44, 1536), (28, 2048)
#: Kinds of vendor ramdisks (VENDOR_RAMDISK_TYPE_*).
RAMDISK_TYPES: Mapping[int, str] = {0: "none", 1: "platform", 2: "recovery", 3: "dlkm"}
#: struct vendor_ramdisk_table_entry_v4: size, offset, type, name, board id.
_TABLE_ENTRY = struct.Struct("<III32s64s")
_RAMDISK_LIMIT = 256


class Ramdisk(NamedTuple):
    """One ramdisk of an image: ``kind`` and ``name`` of its entry in the vendor ramdisk table (v4), else empty."""

    kind: str
    name: str
    data: memoryview


class BootImage(NamedTuple):
    """What an Android boot image holds for the kernel.

    Attributes:
        kind: ``boot`` or ``vendor_boot``, with the header version.
        cmdline: the command line, or empty.
        ramdisks: in the order of the image.
        dtb: its device trees one after another, or empty.
        bootconfig: the bootconfig section (``vendor_boot.img`` v4), or empty.
    """

    kind: str
    cmdline: str
    ramdisks: tuple[Ramdisk, ...]
    dtb: memoryview
    bootconfig: memoryview


def is_boot_image(data: bytes | memoryview) -> bool:
    """Whether ``data`` begins as an Android boot image does."""
    return bytes(data[:8]) in (BOOT_MAGIC, VENDOR_MAGIC)


def read_boot_image(data: bytes | memoryview, name: str) -> BootImage:
    """Take an Android boot image apart.

    Args:
        data: the whole image.
        name: what messages call it.

    Raises:
        InputError: an unknown version, or parts that lie outside of the image.
    """
    reader = _Reader(memoryview(data), name)
    return _vendor(reader) if bytes(data[:8]) == VENDOR_MAGIC else _boot(reader)


class _Reader:
    """Numbers, texts and page-aligned parts of an image, in their order."""

    def __init__(self, view: memoryview, name: str) -> None:
        self.view = view
        self.name = name
        self.page = _V3_PAGE
        self._next = 0

    def u32(self, offset: int) -> int:
        return int.from_bytes(self._bytes(offset, 4), "little")

    def text(self, place: tuple[int, int]) -> str:
        return self._bytes(*place).partition(b"\0")[0].decode("utf-8", "replace")

    def begin(self, header_size: int, page: int) -> None:
        """The header ends: the parts follow, each from a page on."""
        if page not in _PAGE_SIZES:
            raise self.error(f"a page size of {page} bytes")
        self.page = page
        self._next = self._align(header_size)

    def part(self, size: int, what: str) -> memoryview:
        """The next part."""
        start, end = self._next, self._next + size
        if end > len(self.view):
            raise self.error(f"its {what} ({size} bytes at {start:#x}) reaches beyond the end ({len(self.view)} bytes)")
        self._next = self._align(end)
        return self.view[start:end]

    def error(self, what: str) -> InputError:
        return InputError(f"{self.name}: bad Android boot image: {what}")

    def _align(self, position: int) -> int:
        return -(-position // self.page) * self.page

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.view):
            raise self.error("its header is cut off")
        return bytes(self.view[offset : offset + size])


def _boot(reader: _Reader) -> BootImage:
    version = reader.u32(_VERSION_OFFSET)
    # Before version 1 the field was the size of a device tree, which nobody filled.
    version = version if version <= 4 else 0
    if version >= 3:
        reader.begin(reader.u32(20), _V3_PAGE)
        reader.part(reader.u32(8), "kernel")
        ramdisk = reader.part(reader.u32(12), "ramdisk")
        cmdline, dtb = reader.text(_V3_CMDLINE), memoryview(b"")
    else:
        page = reader.u32(36)
        reader.begin(page, page)
        reader.part(reader.u32(8), "kernel")
        ramdisk = reader.part(reader.u32(16), "ramdisk")
        reader.part(reader.u32(24), "second stage")
        cmdline = f"{reader.text(_CMDLINE)}{reader.text(_EXTRA_CMDLINE)}"
        dtb = memoryview(b"")
        if version >= 1:
            reader.part(reader.u32(1632), "recovery DTBO")
        if version == 2:
            dtb = reader.part(reader.u32(1648), "device tree")
    ramdisks = (Ramdisk("", "", ramdisk),) if len(ramdisk) else ()
    return BootImage(f"boot v{version}", cmdline.strip(), ramdisks, dtb, memoryview(b""))


def _vendor(reader: _Reader) -> BootImage:
    version = reader.u32(8)
    if version not in (3, 4):
        raise reader.error(f"vendor_boot header version {version}; known are 3 and 4")
    reader.begin(2128 if version == 4 else 2112, reader.u32(12))
    whole = reader.part(reader.u32(24), "vendor ramdisk")
    dtb = reader.part(reader.u32(2100), "device tree")
    ramdisks: tuple[Ramdisk, ...] = (Ramdisk("", "", whole),) if len(whole) else ()
    bootconfig = memoryview(b"")
    if version == 4:
        table_size, count, entry_size, bootconfig_size = (reader.u32(offset) for offset in (2112, 2116, 2120, 2124))
        table = reader.part(table_size, "vendor ramdisk table")
        bootconfig = reader.part(bootconfig_size, "bootconfig")
        if count:
            ramdisks = _table(reader, whole, table, count, entry_size)
    return BootImage(f"vendor_boot v{version}", reader.text(_VENDOR_CMDLINE).strip(), ramdisks, dtb, bootconfig)


def _table(reader: _Reader, whole: memoryview, table: memoryview, count: int, entry_size: int) -> tuple[Ramdisk, ...]:
    if count > _RAMDISK_LIMIT or entry_size < _TABLE_ENTRY.size or count * entry_size > len(table):
        raise reader.error(f"a vendor ramdisk table of {count} entries of {entry_size} bytes in {len(table)} bytes")
    found = []
    for index in range(count):
        size, offset, kind, raw_name, _ = _TABLE_ENTRY.unpack_from(table, index * entry_size)
        name = printable(raw_name.partition(b"\0")[0].decode("utf-8", "replace"))
        if offset + size > len(whole):
            raise reader.error(f"vendor ramdisk {name or index} ({size} bytes at {offset:#x}) lies outside of them all")
        found.append(Ramdisk(RAMDISK_TYPES.get(kind, f"type {kind}"), name, whole[offset : offset + size]))
    return tuple(found)
