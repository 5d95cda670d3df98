"""What inlined memory code reads: the node that holds all memory, the KASAN switch (``mm/page_alloc.c``, ``mm/kasan``)."""

from __future__ import annotations

from pkvm_emu.kernel import layout
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_variable

_NODE_SIZE = 0x3000
_STATIC_KEY = 16
#: Offset of ``node_start_pfn`` in ``struct pglist_data`` of GKI builds, by kernel line; ``node_present_pages`` and
#: ``node_spanned_pages`` follow. Only lines of which a module was seen to read it are known.
_NODE_START_PFN = {(6, 6): 0x20E8}


@kernel_variable("contig_page_data", _NODE_SIZE)
def contig_page_data(kernel: Kernel) -> bytes:
    """``struct pglist_data`` of the one node: the PFN of the start of RAM, its pages and what it spans."""
    data = bytearray(_NODE_SIZE)
    offset = _NODE_START_PFN.get(kernel.generation.kernel)
    if offset is None:
        major, minor = kernel.generation.kernel
        kernel.log.write(f"contig_page_data: where its members are in {major}.{minor} is not known; they read as 0", 4)
        return bytes(data)
    ram = kernel.machine.ram
    pages = ram.size >> layout.PAGE_SHIFT
    for index, value in enumerate((ram.base >> layout.PAGE_SHIFT, pages, pages)):
        data[offset + 8 * index : offset + 8 * index + 8] = value.to_bytes(8, "little")
    return bytes(data)


@kernel_variable("kasan_flag_enabled", _STATIC_KEY)
def kasan_flag_enabled(kernel: Kernel) -> bytes:
    """Static key of tag-based KASAN: off."""
    return b""
