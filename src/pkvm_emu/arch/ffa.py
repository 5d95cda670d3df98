"""Firmware Framework for A-profile: function ids, return codes, layouts of what passes through the RX and TX buffers.

Source: Arm DEN 0077A (1.0 to 1.2).

>>> Ffa.name_of(0xC400_0073)
'FFA_MEM_SHARE'
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

SMC32_BASE = 0x8400_0000
SMC64_BASE = 0xC400_0000
FFA_FIRST, FFA_LAST = 0x60, 0xFF
"""Function numbers (standard owner) that the specification keeps for FF-A."""
PAGE_SIZE = 4096
"""What page counts of descriptors count, whatever the kernel's granule."""


class Ffa(IntEnum):
    """Function numbers: the low bits of an id."""

    ERROR = 0x60
    SUCCESS = 0x61
    INTERRUPT = 0x62
    VERSION = 0x63
    FEATURES = 0x64
    RX_RELEASE = 0x65
    RXTX_MAP = 0x66
    RXTX_UNMAP = 0x67
    PARTITION_INFO_GET = 0x68
    ID_GET = 0x69
    MSG_POLL = 0x6A
    MSG_WAIT = 0x6B
    YIELD = 0x6C
    RUN = 0x6D
    MSG_SEND = 0x6E
    MSG_SEND_DIRECT_REQ = 0x6F
    MSG_SEND_DIRECT_RESP = 0x70
    MEM_DONATE = 0x71
    MEM_LEND = 0x72
    MEM_SHARE = 0x73
    MEM_RETRIEVE_REQ = 0x74
    MEM_RETRIEVE_RESP = 0x75
    MEM_RELINQUISH = 0x76
    MEM_RECLAIM = 0x77
    MEM_OP_PAUSE = 0x78
    MEM_OP_RESUME = 0x79
    MEM_FRAG_RX = 0x7A
    MEM_FRAG_TX = 0x7B
    NORMAL_WORLD_RESUME = 0x7C
    NOTIFICATION_BITMAP_CREATE = 0x7D
    NOTIFICATION_BITMAP_DESTROY = 0x7E
    NOTIFICATION_BIND = 0x7F
    NOTIFICATION_UNBIND = 0x80
    NOTIFICATION_SET = 0x81
    NOTIFICATION_GET = 0x82
    NOTIFICATION_INFO_GET = 0x83
    RX_ACQUIRE = 0x84
    SPM_ID_GET = 0x85
    MSG_SEND2 = 0x86
    SECONDARY_EP_REGISTER = 0x87
    MEM_PERM_GET = 0x88
    MEM_PERM_SET = 0x89
    CONSOLE_LOG = 0x8A
    PARTITION_INFO_GET_REGS = 0x8B
    EL3_INTR_HANDLE = 0x8C
    MSG_SEND_DIRECT_REQ2 = 0x8D
    MSG_SEND_DIRECT_RESP2 = 0x8E

    @property
    def smc32(self) -> int:
        """The id of the SMC32 form."""
        return SMC32_BASE | self

    @property
    def smc64(self) -> int:
        """The id of the SMC64 form."""
        return SMC64_BASE | self

    @staticmethod
    def of(function: int) -> Ffa | None:
        """The function of an id of either form; None for ids that are not FF-A or have no name."""
        number = function & 0xFFFF
        if function & ~0xFFFF not in (SMC32_BASE, SMC64_BASE) or number not in _NUMBERS:
            return None
        return Ffa(number)

    @staticmethod
    def name_of(function: int) -> str | None:
        """``FFA_VERSION`` for 0x84000063."""
        found = Ffa.of(function)
        return None if found is None else f"FFA_{found.name}"


_NUMBERS = frozenset(int(member) for member in Ffa)


class FfaReturn(IntEnum):
    """Error codes, in x2 of FFA_ERROR; signed 32-bit values."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    NO_MEMORY = -3
    BUSY = -4
    INTERRUPTED = -5
    DENIED = -6
    RETRY = -7
    ABORTED = -8
    NO_DATA = -9


Response = tuple[int, int, int, int]
"""x0 to x3 after a call."""


def success(prop: int = 0) -> Response:
    """FFA_SUCCESS with a value in x2."""
    return Ffa.SUCCESS.smc32, 0, prop, 0


def failure(code: int) -> Response:
    """FFA_ERROR with a code in x2, sign-extended to 64 bits."""
    return Ffa.ERROR.smc32, 0, code & (1 << 64) - 1, 0


VERSION_1_0, VERSION_1_1 = 0x1_0000, 0x1_0001
HOST_ID = 0
"""The endpoint id of the non-secure physical instance."""


def major(version: int) -> int:
    """Bits 30:16."""
    return version >> 16 & 0x7FFF


def minor(version: int) -> int:
    """Bits 15:0."""
    return version & 0xFFFF


def is_ffa(function: int, last: int = FFA_LAST) -> bool:
    """Whether an id is in the FF-A ranges: fast, standard owner, functions 0x60 to ``last``."""
    return function & ~0x4000_FFFF == SMC32_BASE and FFA_FIRST <= function & 0xFFFF <= last


# Memory transactions


class Range(NamedTuple):
    """A constituent: address of its first page, number of 4 KiB pages."""

    address: int
    pages: int

    def pack(self) -> bytes:
        """``struct ffa_mem_region_addr_range``."""
        return _RANGE.pack(self.address, self.pages, 0)


_RANGE = struct.Struct("<QII")
_COMPOSITE = struct.Struct("<IIQ")
_ACCESS = struct.Struct("<HBBIQ")
_REGION = struct.Struct("<HHIQQII")
RANGE_SIZE, COMPOSITE_SIZE, ACCESS_SIZE, REGION_SIZE = _RANGE.size, _COMPOSITE.size, _ACCESS.size, 48
_REGION_SIZE_1_0 = 32


def ranges_of(data: bytes) -> list[Range]:
    """The constituents in whole entries of ``data``."""
    return [Range(address, pages) for address, pages, _ in _RANGE.iter_unpack(data[: len(data) // 16 * 16])]


def access_offset(version: int) -> int:
    """Where the first endpoint access descriptor begins: behind the region header, which grew with 1.1."""
    return _REGION_SIZE_1_0 if version <= VERSION_1_0 else REGION_SIZE


class Region(NamedTuple):
    """The head of a memory transaction descriptor with one endpoint."""

    sender: int
    attributes: int
    flags: int
    handle: int
    tag: int
    access_size: int
    endpoints: int
    receiver: int
    permissions: int
    composite: int

    @classmethod
    def parse(cls, data: bytes, version: int) -> Region:
        """From at least :data:`REGION_SIZE` + :data:`ACCESS_SIZE` bytes."""
        sender, attributes, flags, handle, tag, access_size, endpoints = _REGION.unpack_from(data)
        receiver, permissions, _, composite, _ = _ACCESS.unpack_from(data, access_offset(version))
        return cls(sender, attributes, flags, handle, tag, access_size, endpoints, receiver, permissions, composite)

    def pack(self, version: int, ranges: list[Range]) -> bytes:
        """The whole descriptor, with its constituents."""
        at = access_offset(version)
        access_size = 0 if version <= VERSION_1_0 else ACCESS_SIZE
        head = _REGION.pack(
            self.sender, self.attributes, self.flags, self.handle, self.tag, access_size, self.endpoints
        )
        if version > VERSION_1_0:
            head += struct.pack("<I", at)
        head = head.ljust(at, b"\0")
        access = _ACCESS.pack(self.receiver, self.permissions, 0, at + ACCESS_SIZE, 0)
        composite = _COMPOSITE.pack(sum(r.pages for r in ranges), len(ranges), 0)
        return head + access + composite + b"".join(r.pack() for r in ranges)


def composite_of(data: bytes, offset: int) -> tuple[int, int]:
    """``(pages, constituents)`` of the composite descriptor at ``offset``."""
    pages, count, _ = _COMPOSITE.unpack_from(data, offset)
    return pages, count
