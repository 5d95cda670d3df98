"""Vector table: from where an exception came, and at which offset from VBAR_ELx it is entered.

Source: Arm ARM (DDI 0487), "Exception vectors".
"""

from __future__ import annotations

from enum import IntEnum

from pkvm_emu.arch.spsr import Spsr

VECTOR_TABLE_SIZE = 0x800
VECTOR_ALIGNMENT = 0x800
VECTOR_SLOT_SIZE = 0x80


class VectorKind(IntEnum):
    """Which of the four slots of a group; the value is the offset in the group."""

    SYNC = 0x000
    IRQ = 0x080
    FIQ = 0x100
    SERROR = 0x180


class VectorSource(IntEnum):
    """Which of the four groups; the value is the offset of the group."""

    CURRENT_SP0 = 0x000
    CURRENT_SPX = 0x200
    LOWER_AARCH64 = 0x400
    LOWER_AARCH32 = 0x600


_SOURCE_NAMES = {
    VectorSource.CURRENT_SP0: "el{el}t",
    VectorSource.CURRENT_SPX: "el{el}h",
    VectorSource.LOWER_AARCH64: "lower_64",
    VectorSource.LOWER_AARCH32: "lower_32",
}

VECTORS: dict[int, tuple[VectorSource, VectorKind]] = {
    int(source) + int(kind): (source, kind) for source in VectorSource for kind in VectorKind
}
"""All sixteen offsets."""


def vector_source(pstate: int, target_el: int) -> VectorSource:
    """The group for an exception taken to ``target_el`` in state ``pstate`` (PSTATE or SPSR bits).

    >>> vector_source(0x5, target_el=2).name
    'LOWER_AARCH64'
    """
    state = Spsr(pstate)
    if state.aarch32:
        return VectorSource.LOWER_AARCH32
    if state.el < target_el:
        return VectorSource.LOWER_AARCH64
    return VectorSource.CURRENT_SPX if pstate & 1 else VectorSource.CURRENT_SP0


def vector_offset(pstate: int, target_el: int, kind: VectorKind = VectorKind.SYNC) -> int:
    """Bytes from VBAR_ELx (x = ``target_el``) to the entry for an exception of ``kind`` taken from ``pstate``."""
    return int(vector_source(pstate, target_el)) + int(kind)


def vector_name(offset: int, el: int) -> str:
    """A short name of the slot that ``offset`` (0 to 0x7ff) lies in, for listings: ``el2h_sync``, ``lower_64_irq``."""
    source, kind = VECTORS[offset & 0x780]
    return f"{_SOURCE_NAMES[source].format(el=el)}_{kind.name.lower()}"
