"""drcov, version 2: the blocks of one module, for disassemblers (Lighthouse, Cartographer, lightkeeper).

Each half of the module is one entry of the module table, at the address where it was loaded; blocks are given by their offset
from there.
"""

from __future__ import annotations

import struct

from pkvm_emu.testing.coverage.model import ModuleCoverage

_MAX_BLOCK = 0xFFFF


def write(module: ModuleCoverage) -> bytes:
    """The file of one module."""
    halves = sorted(module.halves.items())
    text = [
        "DRCOV VERSION: 2",
        "DRCOV FLAVOR: pkvm-emu",
        f"Module Table: version 2, count {len(halves)}",
        "Columns: id, base, end, entry, checksum, timestamp, path",
    ]
    blocks = []
    for number, (el, half) in enumerate(halves):
        suffix = "" if el == 2 else f".el{el}"
        text.append(
            f"{number:3}, {half.base:#018x}, {half.base + half.size:#018x}, {0:#018x}, {0:#010x}, {0:#010x}, "
            f"{module.name}.ko{suffix}"
        )
        for offset, (size, _) in sorted(half.blocks.items()):
            blocks.append(struct.pack("<IHH", offset, min(size, _MAX_BLOCK), number))
    text.append(f"BB Table: {len(blocks)} bbs")
    return "\n".join(text).encode() + b"\n" + b"".join(blocks)
