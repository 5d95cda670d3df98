"""What an SMMUv3 reads in memory: stream table entries, context descriptors, and translation tables (4 KiB granule).

Source: Arm IHI 0070, chapters 3.4, 5 and 7.3; Arm ARM, D8 (VMSAv8-64).
"""

from __future__ import annotations

from collections.abc import Callable

from pkvm_emu.arch.bitfield import Register

C_BAD_STREAMID, F_STE_FETCH, C_BAD_STE, F_STREAM_DISABLED, F_CD_FETCH, C_BAD_CD = 0x02, 0x03, 0x04, 0x06, 0x09, 0x0A
F_WALK_EABT, F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION = 0x0B, 0x10, 0x11, 0x12, 0x13
_NAMES = {
    C_BAD_STREAMID: "C_BAD_STREAMID", F_STE_FETCH: "F_STE_FETCH", C_BAD_STE: "C_BAD_STE",
    F_STREAM_DISABLED: "F_STREAM_DISABLED", F_CD_FETCH: "F_CD_FETCH", C_BAD_CD: "C_BAD_CD", F_WALK_EABT: "F_WALK_EABT",
    F_TRANSLATION: "F_TRANSLATION", F_ADDR_SIZE: "F_ADDR_SIZE", F_ACCESS: "F_ACCESS", F_PERMISSION: "F_PERMISSION",
}  # fmt: skip
_STE_SIZE = 64
_ABORT, _BYPASS, _STAGE1, _STAGE2 = 0, 4, 1, 2
_ADDRESS = 0xF_FFFF_FFFF_F000
_PAGE_BITS, _LEVEL_BITS, _OUTPUT_BITS = 12, 9, 48
_VALID, _TABLE, _ACCESS_FLAG = 1, 2, 1 << 10
_S2_READ, _S2_WRITE, _S1_USER, _S1_READ_ONLY = 1 << 6, 1 << 7, 1 << 6, 1 << 7


class Fault(Exception):
    """A translation that is refused.

    Attributes:
        code: the type of the event record; None where none is made.
        ipa: the intermediate address of a fault at stage 2.
    """

    def __init__(self, code: int | None, ipa: int | None = None) -> None:
        super().__init__(_NAMES[code] if code is not None else "the stream is set to abort")
        self.code = code
        self.ipa = ipa


class StreamTable:
    """A stream table in memory.

    Args:
        read: reads physical memory: address and bytes.
        base: physical address.
        config: SMMU_STRTAB_BASE_CFG.
    """

    def __init__(self, read: Callable[[int, int], bytes], base: int, config: Register) -> None:
        self._read = read
        self._base = base
        self._size, self._split, self._is_split = int(config.log2size), int(config.split), config.fmt == 1  # type: ignore[attr-defined]  # mypy: the fields of the subclass

    def _words(self, address: int, count: int, code: int) -> list[int]:
        try:
            data = self._read(address, 8 * count)
        except Exception as error:
            raise Fault(code) from error
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]

    def entry(self, stream: int) -> list[int]:
        """The eight words of a stream table entry.

        Raises:
            Fault: there is no such stream, or the table cannot be read.
        """
        if stream >> self._size:
            raise Fault(C_BAD_STREAMID)
        if not self._is_split:
            return self._words(self._base + stream * _STE_SIZE, 8, F_STE_FETCH)
        index, rest = stream >> self._split, stream & (1 << self._split) - 1
        (level1,) = self._words(self._base + index * 8, 1, F_STE_FETCH)
        span = level1 & 0x1F
        if not span or rest >> span - 1:
            raise Fault(C_BAD_STREAMID)
        return self._words((level1 & 0xF_FFFF_FFFF_FFC0) + rest * _STE_SIZE, 8, F_STE_FETCH)

    def translate(self, stream: int, address: int, is_write: bool) -> int:
        """The physical address behind ``address``.

        Raises:
            Fault: it is refused.
        """
        entry = self.entry(stream)
        config = entry[0] >> 1 & 7
        if not entry[0] & 1:
            raise Fault(C_BAD_STE)
        if config == _ABORT:
            raise Fault(None)
        if config < _BYPASS:
            raise Fault(C_BAD_STE)
        if config & _STAGE1:
            address = self._stage1(entry, address, is_write, bool(config & _STAGE2))
        return self._stage2(entry, address, is_write) if config & _STAGE2 else address

    def _stage1(self, entry: list[int], address: int, is_write: bool, nested: bool) -> int:
        where = entry[0] & 0xF_FFFF_FFFF_FFC0
        if entry[0] >> 59 and entry[0] >> 4 & 3:
            (level1,) = self._words(self._nested(entry, where, nested), 1, F_CD_FETCH)
            if not level1 & 1:
                raise Fault(C_BAD_CD)
            where = level1 & _ADDRESS
        descriptor = self._words(self._nested(entry, where, nested), 8, F_CD_FETCH)
        if not descriptor[0] >> 31 & 1 or descriptor[0] >> 6 & 3 or descriptor[0] >> 14 & 1:
            raise Fault(C_BAD_CD)
        bits = 64 - (descriptor[0] & 0x3F)
        level = 3 - (bits - _PAGE_BITS - 1) // _LEVEL_BITS
        base = descriptor[1] & 0xF_FFFF_FFFF_FFF0
        leaf, output = self._walk(address, base, level, bits, lambda at: self._nested(entry, at, nested), None)
        if not leaf & _S1_USER or (is_write and leaf & _S1_READ_ONLY):
            raise Fault(F_PERMISSION)
        return output

    def _nested(self, entry: list[int], address: int, nested: bool) -> int:
        return self._stage2(entry, address, False) if nested else address

    def _stage2(self, entry: list[int], address: int, is_write: bool) -> int:
        control = entry[2] >> 32
        if control >> 14 & 3:
            # Another granule than 4 KiB, which IDR5 does not offer.
            raise Fault(C_BAD_STE)
        bits, start = 64 - (control & 0x3F), 2 - (control >> 6 & 3)
        if start < 0 or not entry[2] >> 51 & 1:
            raise Fault(C_BAD_STE)
        base = entry[3] & 0xF_FFFF_FFFF_FFF0
        leaf, output = self._walk(address, base, start, bits, lambda at: at, address)
        if not leaf & (_S2_WRITE if is_write else _S2_READ):
            raise Fault(F_PERMISSION, address)
        return output

    def _walk(
        self, address: int, base: int, level: int, bits: int, at: Callable[[int], int], ipa: int | None
    ) -> tuple[int, int]:
        """The leaf descriptor and the output address."""
        if address >> bits:
            raise Fault(F_TRANSLATION, ipa)
        first = True
        while True:
            shift = _PAGE_BITS + _LEVEL_BITS * (3 - level)
            # Tables that are concatenated make the first one longer.
            width = max(bits - shift, 0) if first else _LEVEL_BITS
            index = address >> shift & (1 << width) - 1
            (descriptor,) = self._words(at(base + 8 * index), 1, F_WALK_EABT)
            if not descriptor & _VALID or (level == 3 and not descriptor & _TABLE):
                raise Fault(F_TRANSLATION, ipa)
            if level == 3 or not descriptor & _TABLE:
                if level == 0:
                    raise Fault(F_TRANSLATION, ipa)
                if not descriptor & _ACCESS_FLAG:
                    raise Fault(F_ACCESS, ipa)
                offset = address & (1 << shift) - 1
                output = descriptor & _ADDRESS & ~((1 << shift) - 1)
                if output >> _OUTPUT_BITS:
                    raise Fault(F_ADDR_SIZE, ipa)
                return descriptor, output | offset
            base, level, first = descriptor & _ADDRESS, level + 1, False
