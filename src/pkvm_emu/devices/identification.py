"""The identification registers that every PrimeCell peripheral has at the end of its page."""

from __future__ import annotations

_FIRST, _WORD = 0xFE0, 4
#: PCellID0 to PCellID3: the class of the component, the same for all.
_PRIMECELL = (0x0D, 0xF0, 0x05, 0xB1)


class PrimeCellId:
    """PeriphID0..3 and PCellID0..3, one byte in each word from offset 0xfe0 on.

    Args:
        part: part number, 12 bits (``0x011`` for a PL011).
        revision: revision of the part, 4 bits.

    The designer is Arm (0x41). Source: Arm DDI 0183 (PL011) and DDI 0224 (PL031).
    """

    def __init__(self, part: int, revision: int) -> None:
        designer = 0x41
        self._bytes = (
            part & 0xFF,
            (designer & 0xF) << 4 | part >> 8,
            revision << 4 | designer >> 4,
            0,
            *_PRIMECELL,
        )

    def read(self, offset: int) -> int | None:
        """The register at a byte offset; None where it is no identification register."""
        index, rest = divmod(offset - _FIRST, _WORD)
        return self._bytes[index] if not rest and 0 <= index < len(self._bytes) else None
