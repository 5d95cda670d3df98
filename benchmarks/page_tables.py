"""Building page tables: a GiB in blocks of 2 MiB, and one page that is mapped and unmapped."""

from __future__ import annotations

from common import median_seconds, show

from pkvm_emu.machine.pagetable import PAGE_SIZE, BumpAllocator, FlatMemory, PageTable

_PAGES, _GIB, _ATTRS = 64, 1 << 30, 0x700


def main() -> None:
    memory = FlatMemory(_PAGES * PAGE_SIZE)
    table = PageTable(
        memory, BumpAllocator(0, _PAGES * PAGE_SIZE, lambda pa: memory.write(pa, bytes(PAGE_SIZE))), va_bits=39
    )

    def page() -> None:
        table.map(2 * _GIB, 0, PAGE_SIZE, _ATTRS)
        table.unmap(2 * _GIB, PAGE_SIZE)

    seconds = median_seconds(lambda: table.map(0, 0, _GIB, _ATTRS, 2), runs=20)
    show("mapping 1 GiB in blocks of 2 MiB", seconds * 1e6, "us", "< 3000")
    show("mapping and unmapping a page", median_seconds(page, runs=100) * 1e6, "us", "< 300")


if __name__ == "__main__":
    main()
