"""Write a vendor_boot.img (header version 4) around module files: python make_vendor_boot.py OUT TEXT FILE...

TEXT is the image's command line; each FILE goes to /lib/modules/. What a phone's build puts there besides (modules.dep and so on)
are files like the others.
"""

import gzip
import struct
import sys
from pathlib import Path

PAGE = 4096
BOOTCONFIG = b"androidboot.hardware = example\nkernel.log_buf_len = 2M\n"


def entry(path: str, data: bytes = b"", mode: int = 0o100644) -> bytes:
    """One entry of a cpio archive of the format newc."""
    name = path.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return padded(head, 4) + padded(data, 4)


def padded(data: bytes, size: int) -> bytes:
    """``data`` with zeros up to a multiple of ``size``."""
    return data + bytes(-len(data) % size)


output, cmdline, *files = sys.argv[1:]
entries = [entry(path, mode=0o040755) for path in ("lib", "lib/modules")]
entries += [entry(f"lib/modules/{Path(file).name}", Path(file).read_bytes()) for file in files]
ramdisk = gzip.compress(b"".join([*entries, entry("TRAILER!!!")]), mtime=0)

table = struct.pack("<III32s64x", len(ramdisk), 0, 1, b"")
header = struct.pack("<8s5I2048sI16s", b"VNDRBOOT", 4, PAGE, 0, 0, len(ramdisk), cmdline.encode(), 0, b"")
header += struct.pack("<IIQ4I", 2128, 0, 0, len(table), 1, len(table), len(BOOTCONFIG))
parts = (header, ramdisk, b"", table, BOOTCONFIG)
Path(output).write_bytes(b"".join(padded(part, PAGE) for part in parts))
