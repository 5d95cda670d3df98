"""Formats of IOMMU page tables: what one can do, for tables that are made at EL2.

Source: ``drivers/iommu/io-pgtable{,-arm,-arm-common}.c`` of android15-6.6 and android16-6.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from errno import EINVAL, EOPNOTSUPP

from pkvm_emu.kernel.guest_access import load_u32, load_u64, misuse, store_uint
from pkvm_emu.kernel.kernel import Kernel
from pkvm_emu.kernel.registry import kernel_symbol
from pkvm_emu.machine.calling import Ptr

#: ``struct io_pgtable_cfg``.
_QUIRKS, _SIZES, _IAS, _OAS, _COHERENT = 8, 16, 24, 28, 32
_ARM_64_LPAE_S1, _ARM_64_LPAE_S2, _FORMATS = 2, 3, 10
_PAGE = 4096
#: Page sizes of a granule, the TG0 and TG1 fields that say it, and the most address bits.
_GRANULES = {
    1 << 12: (1 << 12 | 1 << 21 | 1 << 30, 0, 2, 48),
    1 << 14: (1 << 14 | 1 << 25, 2, 1, 48),
    1 << 16: (1 << 16 | 1 << 29, 1, 3, 52),
}
_LARGEST_OF_64K = 1 << 42
_OUTPUT_SIZES = (32, 36, 40, 42, 44, 48, 52)
_QUIRK_TTBR1, _QUIRK_OUTER_WBWA = 1 << 5, 1 << 6
_QUIRK_NS, _QUIRK_HD, _QUIRK_UNMAP_INVAL = 1 << 0, 1 << 7, 1 << 8
_S1_QUIRKS = _QUIRK_NS | _QUIRK_TTBR1 | _QUIRK_OUTER_WBWA
_OUTER, _INNER, _WBWA = 2, 3, 1
_MAIR_VALUE = 0xF4_04_FF_44
_LEVELS = 4
_ENTRY = 8


@dataclass(frozen=True, slots=True)
class ConfigureLine:
    """How ``io_pgtable_configure`` of a kernel line is.

    Attributes:
        tcr: offset of TCR (VTCR) in ``struct io_pgtable_cfg``; MAIR follows.
        s1_quirks, s2_quirks: what the 64-bit formats can do besides.
        returns_size: its second argument is where the bytes of the first table go.
    """

    tcr: int
    s1_quirks: int
    s2_quirks: int
    returns_size: bool


LINES: Mapping[tuple[int, int], ConfigureLine] = {
    (6, 6): ConfigureLine(64, _S1_QUIRKS, 0, True),
    (6, 12): ConfigureLine(80, _S1_QUIRKS | _QUIRK_HD | _QUIRK_UNMAP_INVAL, _QUIRK_UNMAP_INVAL, False),
}


@kernel_symbol("io_pgtable_configure", runs_guest=True)
def io_pgtable_configure(kernel: Kernel, config: Ptr, size_at: Ptr) -> int:
    """Restrict a ``struct io_pgtable_cfg`` to what tables of its format can do, and work out TCR and MAIR (or VTCR) for them.

    0; -EINVAL: no such format, no page size that fits, an output size that does not exist, quirks that the format does not have;
    -EOPNOTSUPP: a format other than the 64-bit LPAE ones. On 6.6 ``*size_at`` gets the bytes of the first table.

    Raises:
        ModuleError: other kernel lines have no such function.
    """
    line = LINES.get(kernel.generation.kernel)
    if line is None:
        raise misuse(kernel, "io_pgtable_configure: this kernel line has no such function")
    kind, quirks = load_u32(kernel, config), load_u64(kernel, config + _QUIRKS)
    if kind >= _FORMATS:
        return -EINVAL
    if kind not in (_ARM_64_LPAE_S1, _ARM_64_LPAE_S2):
        return -EOPNOTSUPP
    granule = (
        0 if quirks & ~(line.s1_quirks if kind == _ARM_64_LPAE_S1 else line.s2_quirks) else _restrict(kernel, config)
    )
    ias, oas = (load_u32(kernel, config + at) for at in (_IAS, _OAS))
    coherent = bool(load_u32(kernel, config + _COHERENT) & 0xFF)
    if not granule or oas not in _OUTPUT_SIZES or (coherent and quirks & _QUIRK_OUTER_WBWA):
        return -EINVAL
    _, first, second, _ = _GRANULES[granule]
    shareability = _INNER if coherent else _OUTER
    inner = _WBWA if coherent else 0
    outer = _WBWA if coherent or quirks & _QUIRK_OUTER_WBWA else 0
    tg = second if quirks & _QUIRK_TTBR1 else first
    common = _OUTPUT_SIZES.index(oas) | tg << 3 | shareability << 5 | outer << 7 | inner << 9
    if kind == _ARM_64_LPAE_S1:
        level = _first_level(granule, ias)
        store_uint(kernel, config + line.tcr, common | 64 - ias << 11, 4)
        store_uint(kernel, config + line.tcr + 8, _MAIR_VALUE, 8)
    else:
        level = _later(granule, _first_level(granule, ias), ias, oas)
        start = level + (granule == 1 << 12)
        store_uint(kernel, config + line.tcr, common | (~start & 3) << 11 | 64 - ias << 13, 4)
    if line.returns_size:
        shift = granule.bit_length() - 1
        store_uint(kernel, size_at, _ENTRY << ias - shift - (shift - 3) * (_LEVELS - 1 - level), 8)
    return 0


def _restrict(kernel: Kernel, config: int) -> int:
    """Leave the page sizes of one granule, that of the CPU or else a smaller one; the granule, 0 where there is none."""
    sizes = load_u64(kernel, config + _SIZES)
    below, above = sizes & _PAGE - 1, sizes & -_PAGE
    granule = _PAGE if sizes & _PAGE else 1 << below.bit_length() - 1 if below else above & -above
    allowed, _, _, bits = _GRANULES.get(granule, (0, 0, 0, 48))
    ias, oas = (load_u32(kernel, config + at) for at in (_IAS, _OAS))
    if granule == 1 << 16 and oas > 48:
        allowed |= _LARGEST_OF_64K
    store_uint(kernel, config + _SIZES, sizes & allowed, 8)
    store_uint(kernel, config + _IAS, min(ias, bits), 4)
    store_uint(kernel, config + _OAS, min(oas, bits), 4)
    return granule if sizes & allowed else 0


def _first_level(granule: int, ias: int) -> int:
    """Where a walk of so many address bits begins."""
    shift = granule.bit_length() - 1
    return _LEVELS - -(-(ias - shift) // (shift - 3))


def _later(granule: int, level: int, ias: int, oas: int) -> int:
    """Where a walk at stage 2 begins: a level later where the architecture wants tables put together."""
    if granule == 1 << 16 or level > 1:
        return level
    if granule == 1 << 12:
        together = level == 0 and oas in (40, 42)
    else:
        together = 48 in (ias, oas) if level == 0 else oas == 40
    return level + together
