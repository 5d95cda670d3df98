"""Protections and descriptors as the hypervisor's page-table code forms them, for EL2 stage-1 and for stage-2.

A protection is the 64-bit ``enum kvm_pgtable_prot`` that module ops take: X, W, R, DEVICE, NORMAL_NC, PXN, UXN in bits
0..6, software bits SW0..SW3 in bits 55..58. The functions turn it into the attribute bits of a leaf and back; which
combinations are refused is part of the interface. Source: arch/arm64/kvm/hyp/pgtable.c, asm/kvm_pgtable.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from errno import EINVAL

from pkvm_emu.machine.pagetable import (
    ADDR_MASK,
    DESC_TABLE,
    DESC_VALID,
    LAST_LEVEL,
    LEVEL_SHIFT,
    LEVEL_SIZE,
    TableReader,
    is_table,
)

PROT_X = 1 << 0
PROT_W = 1 << 1
PROT_R = 1 << 2
PROT_DEVICE = 1 << 3
PROT_NORMAL_NC = 1 << 4
PROT_PXN = 1 << 5
PROT_UXN = 1 << 6
PROT_SW_SHIFT = 55
PROT_SW = 0xF << PROT_SW_SHIFT

PROT_RW = PROT_R | PROT_W
PROT_RWX = PROT_RW | PROT_X
PAGE_HYP = PROT_RW
PAGE_HYP_EXEC = PROT_R | PROT_X
PAGE_HYP_RO = PROT_R
PAGE_HYP_DEVICE = PROT_RW | PROT_DEVICE
HOST_MEM_PROT = PROT_RWX
HOST_MMIO_PROT = PROT_RW

#: The page state in a protection or a descriptor: SW0 and SW1.
STATE_SHIFT = PROT_SW_SHIFT
STATE_MASK = 3 << STATE_SHIFT

OWNER_SHIFT = 2
OWNER_MASK = 0xFF << OWNER_SHIFT

_AF = 1 << 10
_SH_INNER = 3 << 8
_XN_SHIFT = 53
_S1_XN = 1 << 54
_S1_GP = 1 << 50
_AP_SHIFT = 6
_S2_R = 1 << 6
_S2_W = 1 << 7
_S2_NORMAL, _S2_NC, _S2_DEVICE = 0xF << 2, 0x5 << 2, 0x1 << 2
_XN_NONE, _XN_PXN, _XN_ALL, _XN_UXN = 0, 1, 2, 3
_MT_NORMAL, _MT_NORMAL_NC, _MT_DEVICE_NGNRE = 0, 2, 4

_ATTR_HI = ((1 << 64) - 1) & ~((1 << 50) - 1)
_ATTR_LO = 0xFFC


@dataclass(frozen=True)
class TableFeatures:
    """CPU features that change descriptors.

    Attributes:
        lpa2: FEAT_LPA2 in use: bits 9:8 belong to the address, so there is no shareability field.
        hvhe: EL2 runs with HCR_EL2.E2H set, so its stage-1 has the two-level permission format.
        bti: executable EL2 pages are guarded (GP bit).
    """

    lpa2: bool = False
    hvhe: bool = True
    bti: bool = False

    @property
    def leaf_mask(self) -> int:
        """The attribute bits of a leaf."""
        return _ATTR_HI | (_ATTR_LO & ~_SH_INNER if self.lpa2 else _ATTR_LO)

    @property
    def shareability(self) -> int:
        return 0 if self.lpa2 else _SH_INNER


def with_state(prot: int, state: int) -> int:
    """``prot`` carrying a page state (OWNED, SHARED_OWNED, SHARED_BORROWED, MMIO_DMA) in SW0/SW1."""
    return prot & ~STATE_MASK | state << STATE_SHIFT


def state_of(descriptor: int) -> int:
    """The page state in a descriptor's (or a protection's) software bits."""
    return descriptor >> STATE_SHIFT & 3


def owner_annotation(owner: int) -> int:
    """The invalid entry that says a page belongs to ``owner`` (0..255)."""
    return owner << OWNER_SHIFT & OWNER_MASK


def stage2_attr(prot: int, features: TableFeatures) -> int:
    """Attribute bits of a stage-2 leaf, or -EINVAL.

    Refused: DEVICE with NORMAL_NC, either of them with X, X together with PXN or UXN, PXN together with UXN.
    """
    kind = prot & (PROT_DEVICE | PROT_NORMAL_NC)
    if kind == PROT_DEVICE | PROT_NORMAL_NC or (kind and prot & PROT_X):
        return -EINVAL
    attr = {0: _S2_NORMAL, PROT_DEVICE: _S2_DEVICE, PROT_NORMAL_NC: _S2_NC}[kind]
    execute = {PROT_X: _XN_NONE, PROT_PXN: _XN_PXN, PROT_UXN: _XN_UXN, 0: _XN_ALL}.get(
        prot & (PROT_X | PROT_PXN | PROT_UXN)
    )
    if execute is None:
        return -EINVAL
    attr |= execute << _XN_SHIFT
    if prot & PROT_R:
        attr |= _S2_R
    if prot & PROT_W:
        attr |= _S2_W
    return attr | features.shareability | _AF | prot & PROT_SW


def stage2_prot(descriptor: int) -> int:
    """The protection of a stage-2 entry (the memory type is not read back); of an invalid one its software bits."""
    prot = descriptor & PROT_SW
    if not descriptor & DESC_VALID:
        return prot
    if descriptor & _S2_R:
        prot |= PROT_R
    if descriptor & _S2_W:
        prot |= PROT_W
    return prot | (PROT_X, PROT_PXN, 0, PROT_UXN)[descriptor >> _XN_SHIFT & 3]


def hyp_attr(prot: int, features: TableFeatures) -> int:
    """Attribute bits of an EL2 stage-1 leaf, or -EINVAL.

    R is required; PXN and UXN, DEVICE with NORMAL_NC, X with W, and X on anything but normal memory are refused.
    """
    if not prot & PROT_R or prot & (PROT_PXN | PROT_UXN):
        return -EINVAL
    kind = prot & (PROT_DEVICE | PROT_NORMAL_NC)
    if kind == PROT_DEVICE | PROT_NORMAL_NC:
        return -EINVAL
    attr = {0: _MT_NORMAL, PROT_DEVICE: _MT_DEVICE_NGNRE, PROT_NORMAL_NC: _MT_NORMAL_NC}[kind] << 2
    if prot & PROT_X:
        if prot & PROT_W or kind:
            return -EINVAL
        if features.bti:
            attr |= _S1_GP
    else:
        attr |= _S1_XN
    attr |= _hyp_ap(features.hvhe, bool(prot & PROT_W)) << _AP_SHIFT
    return attr | features.shareability | _AF | prot & PROT_SW


def hyp_prot(descriptor: int, features: TableFeatures) -> int:
    """The protection of an EL2 stage-1 entry (the memory type is not read back)."""
    prot = descriptor & PROT_SW
    if not descriptor & DESC_VALID:
        return prot
    if not descriptor & _S1_XN:
        prot |= PROT_X
    access = descriptor >> _AP_SHIFT & 3
    if access == _hyp_ap(features.hvhe, writable=False):
        prot |= PROT_R
    elif access == _hyp_ap(features.hvhe, writable=True):
        prot |= PROT_RW
    return prot


def _hyp_ap(hvhe: bool, writable: bool) -> int:
    """AP[2:1]: with E2H as at EL1 (bit 0 would give EL0 access), without it bit 0 is RES1."""
    if hvhe:
        return 0 if writable else 2
    return 1 if writable else 3


def default_host_attr(is_memory: bool, features: TableFeatures) -> int:
    """Attribute bits of the host stage-2's default mapping: RWX for RAM, RW for everything else."""
    return stage2_attr(HOST_MEM_PROT if is_memory else HOST_MMIO_PROT, features)


def leaf_descriptor(pa: int, attr: int, level: int) -> int:
    """A valid block or page descriptor."""
    return pa | attr | (DESC_TABLE if level == LAST_LEVEL else DESC_VALID)


def visit_leaves(table: TableReader, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Every leaf entry that ``[start, end)`` touches, invalid ones included, ascending.

    Yields:
        ``(address, level, descriptor, PA of the entry)``. Tables are read as a whole, so the caller must not change
        them while iterating.
    """
    if start < end:
        yield from _visit(table, table.root, table.start_level, start, end)


def _visit(reader: TableReader, table: int, level: int, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    descriptors = reader.entries(table, level)
    shift, size = LEVEL_SHIFT[level], LEVEL_SIZE[level]
    index = start >> shift & len(descriptors) - 1
    address = start & -size
    while address < end and index < len(descriptors):
        descriptor = descriptors[index]
        if is_table(descriptor, level):
            stop = min(end, address + size)
            yield from _visit(reader, descriptor & ADDR_MASK, level + 1, max(start, address), stop)
        else:
            yield address, level, descriptor, table + index * 8
        address += size
        index += 1
