"""Writers of what phones boot from, by the documented layouts: cpio archives, Android boot images, bootconfig."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

DIRECTORY, FILE, LINK = 0o040755, 0o100644, 0o120777
PAGE = 4096
TYPES = {"none": 0, "platform": 1, "recovery": 2, "dlkm": 3}


def entry(
    path: str, data: bytes = b"", mode: int = FILE, *, magic: bytes = b"070701", inode: int = 1, links: int = 1
) -> bytes:
    """One cpio entry; with the magic 070702 its checksum too."""
    name = path.encode() + b"\0"
    check = sum(data) if magic == b"070702" else 0
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), check)
    head = magic + b"".join(b"%08x" % field for field in fields) + name
    return _padded(head, 4) + _padded(data, 4)


def cpio(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, magic: bytes = b"070701") -> bytes:
    """An archive with the directories that its files need."""
    directories = dict.fromkeys(
        "/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)
    )
    parts = [entry(path, mode=DIRECTORY, magic=magic) for path in directories]
    parts += [entry(path, data, magic=magic) for path, data in files.items()]
    parts += [entry(path, target.encode(), LINK, magic=magic) for path, target in (links or {}).items()]
    return _padded(b"".join([*parts, entry("TRAILER!!!", magic=magic)]), 512)


def lz4_legacy(data: bytes) -> bytes:
    """What ``lz4 -l`` makes."""
    import lz4.block

    blocks = [data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in packed)


def bootconfig_trailer(text: bytes) -> bytes:
    """What a boot loader puts behind an initramfs."""
    text = _padded(text + b"\0", 4)
    return text + struct.pack("<II", len(text), sum(text)) + b"#BOOTCONFIG\n"


def vendor_boot(
    ramdisks: Sequence[tuple[str, str, bytes]],
    *,
    version: int = 4,
    cmdline: str = "",
    dtb: bytes = b"",
    bootconfig: bytes = b"",
    page: int = PAGE,
) -> bytes:
    """``vendor_boot.img``: ramdisks as (type, name, data); version 3 has no table."""
    whole, table = b"", b""
    for kind, name, data in ramdisks:
        table += struct.pack("<III32s64x", len(data), len(whole), TYPES[kind], name.encode())
        whole += data
    head = struct.pack("<8s5I2048sI16s", b"VNDRBOOT", version, page, 0, 0, len(whole), cmdline.encode(), 0, b"")
    head += struct.pack("<IIQ", 2128 if version == 4 else 2112, len(dtb), 0)
    if version == 3:
        return b"".join(_padded(part, page) for part in (head, whole, dtb))
    head += struct.pack("<4I", len(table), len(ramdisks), 108, len(bootconfig))
    return b"".join(_padded(part, page) for part in (head, whole, dtb, table, bootconfig))


def boot(version: int, ramdisk: bytes, *, cmdline: str = "", kernel: bytes = b"kernel", dtb: bytes = b"") -> bytes:
    """``boot.img`` or ``init_boot.img`` of any header version."""
    if version >= 3:
        head = struct.pack(
            "<8s4I16xI1536s",
            b"ANDROID!",
            len(kernel),
            len(ramdisk),
            0,
            1580 + 4 * (version == 4),
            version,
            cmdline.encode(),
        )
        head += struct.pack("<I", 0) if version == 4 else b""
        return b"".join(_padded(part, PAGE) for part in (head, kernel, ramdisk))
    page = 2048
    line = cmdline.encode()
    head = struct.pack("<8s10I16s", b"ANDROID!", len(kernel), 0, len(ramdisk), 0, 0, 0, 0, page, version, 0, b"")
    head += struct.pack("<512s32x1024s", line[:512], line[512:])
    head += struct.pack("<IQI", 0, 0, 1648 if version == 1 else 1660) if version else b""
    head += struct.pack("<IQ", len(dtb), 0) if version == 2 else b""
    return b"".join(_padded(part, page) for part in (head, kernel, ramdisk, dtb))


def _padded(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)
