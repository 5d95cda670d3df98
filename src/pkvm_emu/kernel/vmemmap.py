"""``struct page``: 64 bytes for each page of RAM at ``VMEMMAP_START``, backed when somebody gets to see one.

Modules compute between ``struct page *``, PFN and linear address with the constants they were compiled with (VA_BITS,
4 KiB pages): page = VMEMMAP_START + ((pa - memstart_addr) >> 12) * 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkvm_emu.errors import EmulatorError
from pkvm_emu.kernel.line_facts import line_facts
from pkvm_emu.kernel.page_allocator import PAGE_SIZE
from pkvm_emu.kernel.registry import kernel_part
from pkvm_emu.kernel.vsprintf_env import GuestFault

if TYPE_CHECKING:
    from pkvm_emu.kernel.kernel import Kernel

STRUCT_PAGE = 64
#: Offset of ``_refcount``.
_REFCOUNT = 52


@kernel_part
class Vmemmap:
    """Finds, backs and counts ``struct page``. Everything it knows is in guest memory.

    Args:
        kernel: whose RAM it describes.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.start = line_facts(kernel.generation.kernel).vmemmap_start(kernel.memory.layout.va_bits)

    def page(self, pa: int) -> int:
        """Address of the ``struct page`` of a physical page; it is readable from then on."""
        address = self.start + ((pa - self._kernel.memory.memstart) // PAGE_SIZE) * STRUCT_PAGE
        self._back(address & -PAGE_SIZE)
        return address

    def physical(self, page: int) -> int | None:
        """Physical address of a ``struct page``, or None where ``page`` is no such pointer into RAM."""
        index, rest = divmod(page - self.start, STRUCT_PAGE)
        pa = self._kernel.memory.memstart + index * PAGE_SIZE
        return pa if not rest and pa in self._kernel.machine.ram else None

    def set_references(self, pa: int, count: int) -> None:
        """Set the reference count of a page."""
        self._kernel.memory.write_u32(self.page(pa) + _REFCOUNT, count)

    def put(self, pa: int) -> bool:
        """Drop a reference; whether it was the last."""
        place = self.page(pa) + _REFCOUNT
        count = self._kernel.memory.read_u32(place)
        self._kernel.memory.write_u32(place, max(count - 1, 0))
        return count <= 1

    def _back(self, va: int) -> None:
        try:
            self._kernel.memory.to_pa(va)
        except GuestFault:
            pa = self._kernel.pages.alloc_pages(0, zero=True)
            if pa is None:
                raise EmulatorError("no memory for struct page") from None
            self._kernel.memory.map(va, pa, PAGE_SIZE, "rw")
