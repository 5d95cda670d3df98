"""A machine's memory as the recordings had it: 1 GiB of RAM at 0x40000000, 12 MiB of it reserved for EL2."""

from __future__ import annotations

import errno

from pkvm_emu.hyp.ownership_setup import HypMemory, MemoryLayout, build_ownership
from pkvm_emu.hyp.page_state import Region
from pkvm_emu.hyp.pgtable import TableFeatures
from pkvm_emu.machine.pagetable import FlatMemory
from pkvm_emu.machine.state import Journal

RAM, RAM_SIZE = 0x4000_0000, 1 << 30
RESERVE, RESERVE_SIZE = 0x7F40_0000, 12 << 20
OFFSET = 0x6B_4000_0000
UART, RTC = 0x0900_0000, 0x0901_0000
A14, A15, A16 = "android14-6.1", "android15-6.6", "android16-6.12"
GENERATIONS = ("android14-5.15", A14, A15, A16)
LPA2 = TableFeatures(lpa2=True, hvhe=True)
PAGE = 0x1000


ONE_GIB = (Region(RAM, RAM_SIZE),)


def make(generation: str = A16, features: TableFeatures = LPA2, regions=ONE_GIB, **kwargs) -> HypMemory:
    """A built model; ``kwargs`` go to MemoryLayout."""
    size = max(r.end for r in regions) - RAM
    layout = MemoryLayout(regions, RESERVE, RESERVE_SIZE, OFFSET, **kwargs)
    return build_ownership(Journal(), FlatMemory(size, RAM), generation, layout, features)


def name(result: int) -> str:
    """An errno as the recordings print it."""
    return "0" if not result else f"-{errno.errorcode[-result]}"
