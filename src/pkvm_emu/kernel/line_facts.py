"""What exported functions need to know about a kernel line and what the module ABI tables do not hold.

Sources: ``arch/arm64/include/asm/{memory,cache}.h``, ``include/linux/{slab,gfp_types,trace_seq}.h``, ``lib/kstrtox.c``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LineFacts:
    """Facts of one kernel line.

    Attributes:
        vmemmap: how far the vmemmap ends below the top of the address space, and by how many bits it is smaller than that.
        kmalloc_min_size: bytes of the smallest kmalloc object (``KMALLOC_MIN_SIZE``; the DMA alignment before 6.5).
        gfp_zero: ``__GFP_ZERO``.
        gfp_direct_reclaim: ``__GFP_DIRECT_RECLAIM``: the caller may sleep.
        gfp_nowarn: ``__GFP_NOWARN``.
        bool_words: first letters that ``kstrtobool`` takes for true and for false.
        trace_seq_buffer: offset of the ``struct seq_buf`` in ``struct trace_seq``, and bytes of its buffer.
        trace_seq_full: offset of ``full``.
        find_next_bit_combined: ``_find_next_bit`` is the one function behind all searches, with six arguments.
        kvrealloc_has_old_size: ``kvrealloc`` takes the old size as second argument.
        extable_has_type: an ``__ex_table`` entry says which registers get the error (5.16 and later).
        strreplace_returns_start: ``strreplace`` returns the start of the string and not its end.
        inherited_taint_names_symbol: messages about symbols of proprietary modules name the symbol (since 6.2).
    """

    vmemmap: tuple[int, int]
    kmalloc_min_size: int
    bool_words: tuple[bytes, bytes]
    trace_seq_buffer: tuple[int, int]
    trace_seq_full: int
    find_next_bit_combined: bool = False
    kvrealloc_has_old_size: bool = True
    strreplace_returns_start: bool = True
    inherited_taint_names_symbol: bool = True
    extable_has_type: bool = True
    gfp_zero: int = 0x100
    gfp_direct_reclaim: int = 0x400
    gfp_nowarn: int = 0x2000

    def vmemmap_start(self, va_bits: int) -> int:
        """``VMEMMAP_START`` of a kernel with so many address bits: modules compute ``page_to_pfn`` with it."""
        gap, smaller = self.vmemmap
        return (1 << 64) - gap - (1 << va_bits - smaller)


#: ``struct page`` has 64 bytes, a 64th of a page. 6.12 has one for each page of the linear map, which is half the space.
_OLD_VMEMMAP = (0, 6)
_NEW_VMEMMAP = (1 << 30, 7)
_SHORT = (b"yY1", b"nN0")
_LONG = (b"yYtT1", b"nNfF0")

_LINES = {
    (5, 15): LineFacts(
        _OLD_VMEMMAP,
        128,
        _SHORT,
        (4096, 4096),
        4128,
        find_next_bit_combined=True,
        strreplace_returns_start=False,
        inherited_taint_names_symbol=False,
        extable_has_type=False,
    ),
    (6, 1): LineFacts(
        _OLD_VMEMMAP, 128, _LONG, (4096, 4096), 4128, strreplace_returns_start=False, inherited_taint_names_symbol=False
    ),
    (6, 6): LineFacts(_OLD_VMEMMAP, 8, _LONG, (4096, 4096), 4128),
    (6, 12): LineFacts(_NEW_VMEMMAP, 8, _LONG, (8160, 8156), 8192, kvrealloc_has_old_size=False),
}


def line_facts(version: tuple[int, int]) -> LineFacts:
    """The facts of a kernel line; of the newest known one that is not newer than ``version``."""
    return _LINES[max((known for known in _LINES if known <= version), default=min(_LINES))]
