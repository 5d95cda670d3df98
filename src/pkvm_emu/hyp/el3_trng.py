"""True random numbers of the firmware, from a counter: the same run gets the same bits. Source: Arm DEN 0098."""

from __future__ import annotations

import hashlib
import uuid

from pkvm_emu.arch import smccc
from pkvm_emu.machine.machine import Machine
from pkvm_emu.machine.state import State

_VERSION_1_0 = 0x1_0000
_FUNCTIONS = frozenset(
    (
        smccc.STANDARD_TRNG_VERSION,
        smccc.STANDARD_TRNG_FEATURES,
        smccc.STANDARD_TRNG_GET_UUID,
        smccc.STANDARD_TRNG_RND32,
        smccc.STANDARD_TRNG_RND64,
    )
)
_UUID = uuid.uuid5(uuid.NAMESPACE_URL, "pkvm_emu/trng")
#: By id: width of a register, and bits that one call returns at most.
_WIDTH = {smccc.STANDARD_TRNG_RND32: (32, 96), smccc.STANDARD_TRNG_RND64: (64, 192)}


class El3Trng(State):
    """The entropy source.

    Args:
        machine: owner of the state.

    Attributes:
        drawn: calls that returned bits; the next bits are a hash over it.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.journal, "el3.trng")
        self.drawn = 0

    def answer(self, function: int, x: tuple[int, ...]) -> int | tuple[int, ...] | None:
        """See :class:`~pkvm_emu.hyp.el3.El3Service`."""
        match function:
            case smccc.STANDARD_TRNG_VERSION:
                return _VERSION_1_0
            case smccc.STANDARD_TRNG_FEATURES:
                return smccc.SUCCESS if x[1] in _FUNCTIONS else smccc.NOT_SUPPORTED
            case smccc.STANDARD_TRNG_GET_UUID:
                return tuple(int.from_bytes(_UUID.bytes[at : at + 4], "little") for at in (0, 4, 8, 12))
            case smccc.STANDARD_TRNG_RND32 | smccc.STANDARD_TRNG_RND64:
                return self._random(x[1], *_WIDTH[function])
        return None

    def _random(self, bits: int, width: int, most: int) -> tuple[int, ...]:
        """The bits fill x3 first, then x2 and x1; what is not asked for is 0."""
        if not 0 < bits <= most:
            return smccc.INVALID_PARAMETER & smccc.MASK64, 0, 0, 0
        self.drawn += 1
        digest = hashlib.sha256(b"pkvm_emu trng %d" % self.drawn).digest()
        value = int.from_bytes(digest, "little") & (1 << bits) - 1
        mask = (1 << width) - 1
        return smccc.SUCCESS, value >> 2 * width & mask, value >> width & mask, value & mask
